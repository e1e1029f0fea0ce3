// The schedule of low-rank products on the GPU: tiles of rows by adapter, and what modules ask of launches.
#include <algorithm>

#include "ops/lora/cuda.cuh"

namespace pluralign::cuda {
namespace {

std::vector<RowTile> list_of(const Plan& plan) {
  std::vector<RowTile> list;
  for (int64_t u = 0; u < plan.host.runs; ++u) {
    const device::PlanRun& run = plan.host.run[u];
    for (int64_t i = 0; run.adapter >= 0 && i < run.rows; i += kTileRows) list.push_back({run.row + i, int32_t(std::min<int64_t>(kTileRows, run.rows - i)), run.adapter});
  }
  if (plan.host.standing) list.resize(size_t(plan.host.rows), RowTile{0, 0, 0});
  return list;
}

void take(LoraRanks& to, const LoraModule& m) {
  if (m.r <= 0) return;
  to.most = std::max(to.most, m.r);
  if (m.core_rows > 0) to.core = std::max(to.core, m.r);
  to.factors = to.factors || m.da || m.db;
  to.vector = to.vector || (m.core_rows == 1 && m.dcore);
  to.matrix = to.matrix || (m.core_rows > 1 && m.dcore);
}

}  // namespace

RowTiles::RowTiles(Context& c, const Plan& plan) : context(&c), list(list_of(plan)) {
  count = int64_t(list.size());
  if (count == 0) return;
  tiles = static_cast<RowTile*>(c.borrow(list.size() * sizeof(RowTile), "a plan's tiles"));
  c.upload(tiles, list.data(), list.size() * sizeof(RowTile));
}

RowTiles::~RowTiles() {
  if (tiles) context->give_back(tiles);
}

void RowTiles::renew(const Plan& plan) {
  std::vector<RowTile> fresh = list_of(plan);
  const auto same = [](const RowTile& a, const RowTile& b) { return a.row == b.row && a.rows == b.rows && a.adapter == b.adapter; };
  if (std::equal(fresh.begin(), fresh.end(), list.begin(), list.end(), same)) return;
  list = std::move(fresh);
  context->upload(tiles, list.data(), list.size() * sizeof(RowTile));
}

RowTiles& row_tiles(Context& context, const Plan& plan) {
  auto& made = const_cast<Plan&>(plan).schedules["lora"];
  if (!made) made = std::make_unique<RowTiles>(context, plan);
  return static_cast<RowTiles&>(*made);
}

LoraRanks lora_ranks(Context& context, const device::LinearCall& call) {
  LoraRanks out;
  for (int index = 0; index < call.count; ++index) {
    const device::LinearPart& part = call.part[index];
    if (!part.modules) continue;
    if (call.plan->host.standing) {
      const auto [at, fresh] = row_tiles(context, *call.plan).ranks.try_emplace({part.host_modules, call.adapters});
      for (int32_t a = 0; fresh && a < call.adapters; ++a) take(at->second, part.host_modules[a]);
      out.most = std::max(out.most, at->second.most);
      out.core = std::max(out.core, at->second.core);
    } else {
      for (int64_t u = 0; u < call.plan->host.runs; ++u)
        if (const int32_t adapter = call.plan->host.run[u].adapter; adapter >= 0) take(out, part.host_modules[adapter]);
    }
  }
  return out;
}

}  // namespace pluralign::cuda
