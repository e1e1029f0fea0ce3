// Recordings: what is queued on the stream becomes a CUDA graph, which one call queues again. A graph holds the arguments that
// its kernels were launched with, addresses among them; so a recording ends for good once memory that it may use is released.
#include "cuda/context.h"

namespace pluralign::device {

void Context::not_recorded(const char* what) const {
  if (under_way_) throw cuda::Failure(Status::unsupported, std::string("a recording cannot hold ") + what);
}

void Context::begin_recording() {
  if (!records_) throw cuda::Failure(Status::unsupported, "nothing is recorded where PLURALIGN_CUDA_GRAPHS is not 1");
  not_recorded("another");
  // Of this thread alone: others may go on with what is theirs.
  if (const cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal); error != cudaSuccess) {
    cudaGetLastError();
    throw cuda::Failure(Status::unsupported, std::string("no recording begins: ") + cudaGetErrorName(error));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  under_way_ = std::make_unique<Recording>();
  under_way_->begun = ++clock_;
  recordings_.insert(under_way_.get());
}

std::unique_ptr<Recording> Context::end_recording(bool keep) {
  if (!under_way_) return nullptr;
  cudaGraph_t graph = nullptr;
  cudaError_t error = cudaStreamEndCapture(stream, &graph);
  std::unique_ptr<Recording> made;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    made = std::move(under_way_);
    for (void* at : released_meanwhile_) cudaFree(at);
    released_meanwhile_.clear();
  }
  if (error == cudaSuccess && keep) error = cudaGraphInstantiate(&made->graph, graph, 0);
  if (graph) cudaGraphDestroy(graph);
  cudaGetLastError();
  if (error == cudaSuccess && keep) return made;
  made->graph = nullptr;
  drop(std::move(made));
  // Whatever it was, the same can be launched one by one; an error that stays is found there.
  if (keep) throw cuda::Failure(Status::unsupported, std::string("a recording did not end well: ") + cudaGetErrorName(error));
  return nullptr;
}

Status Context::replay(Recording& recording) {
  not_recorded("a recording");
  // Until it is queued nothing that it uses may be released, which another thread may ask for; a release after that waits for it.
  const std::lock_guard<std::mutex> lock(mutex_);
  if (recording.stale) return Status::stale;
  const cudaError_t error = cudaGraphLaunch(recording.graph, stream);
  if (error == cudaErrorMemoryAllocation) {  // it wants some of its own at first
    cudaGetLastError();
    recording.stale = true;
    return Status::stale;
  }
  check(error, "replaying a step");
  return Status::ok;
}

void Context::drop(std::unique_ptr<Recording> recording) {
  const std::lock_guard<std::mutex> lock(mutex_);
  recordings_.erase(recording.get());
  if (recording->graph) cudaGraphExecDestroy(recording->graph);  // what of it is still on its way goes on
}

}  // namespace pluralign::device
