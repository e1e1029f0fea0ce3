#include "ops/table.h"

namespace pluralign {

namespace isa_reference { void fill(Kernels&); }
namespace isa_generic { void fill(Kernels&); }
namespace isa_avx2 { void fill(Kernels&); }
namespace isa_avx512 { void fill(Kernels&); }
namespace isa_avx512bf16 { void fill(Kernels&); }
namespace isa_amx { void fill(Kernels&); }

const Kernels& kernels_of(Isa isa) {
  struct Tables {
    Kernels all[kIsas];
    Tables() {
      isa_reference::fill(all[int(Isa::reference)]);
      isa_generic::fill(all[int(Isa::generic)]);
#if defined(__x86_64__) || defined(_M_X64)
      // Each fill() is code of its own instruction set: the compiler uses it there as well.
      if (isa_supported(Isa::avx2)) isa_avx2::fill(all[int(Isa::avx2)]);
      if (isa_supported(Isa::avx512)) isa_avx512::fill(all[int(Isa::avx512)]);
      if (isa_supported(Isa::avx512bf16)) {
        Kernels& pairs = all[int(Isa::avx512bf16)] = all[int(Isa::avx512)];
        isa_avx512bf16::fill(pairs);
        isa_amx::fill(all[int(Isa::amx)] = pairs);
      }
#endif
      for (int i = 0; i < kIsas; ++i) all[i].isa = Isa(i);
    }
  };
  static const Tables tables;
  return tables.all[int(isa)];
}

}  // namespace pluralign
