// Capture, graphs and replay, as CUDA has them: what a graph does when it is launched is what was said at the capture, with the
// addresses of then and whatever lies there now.
#include "runtime.h"

struct EmulatedGraph {
  struct Node {
    bool kernel;
    std::function<void()> work;
  };
  std::vector<Node> nodes;
};

struct EmulatedStream {
  EmulatedGraph* captured = nullptr;
  bool spoiled = false;
};

namespace {
thread_local EmulatedStream* capturing = nullptr;
int64_t replayed = 0;
}  // namespace

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return *s = new EmulatedStream, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t s) {
  delete s->captured;
  delete s;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
  if (!s || s->captured || capturing) return cudaErrorInvalidValue;
  capturing = s;
  s->captured = new EmulatedGraph;
  s->spoiled = false;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* out) {
  *out = nullptr;
  if (!s || !s->captured) return cudaErrorInvalidValue;
  if (capturing != s) return cudaErrorStreamCaptureWrongThread;
  capturing = nullptr;
  EmulatedGraph* graph = s->captured;
  s->captured = nullptr;
  if (s->spoiled) {
    delete graph;
    return cudaErrorStreamCaptureInvalidated;
  }
  *out = graph;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
  if (!graph) return cudaErrorInvalidValue;
  *out = new EmulatedGraph(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  if (!graph || (stream && stream->captured)) return cudaErrorInvalidValue;
  ++replayed;
  for (const EmulatedGraph::Node& node : graph->nodes) {
    if (node.kernel && !emulator::starts(false)) break;
    node.work();
  }
  return cudaSuccess;  // what fails while it runs is found by who waits for it
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete graph, cudaSuccess; }

namespace emulator {

void queue(cudaStream_t stream, bool kernel, std::function<void()> work) {
  if (stream && stream->captured) stream->captured->nodes.push_back({kernel, std::move(work)});
  else if (!kernel || starts(true)) work();
}

bool spoils_capture() {
  if (capturing) capturing->spoiled = true;
  return capturing != nullptr;
}

int64_t replays() { return replayed; }

}  // namespace emulator
