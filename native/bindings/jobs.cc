#include "jobs.h"

#include "device/library.h"

#include <stdexcept>

namespace pluralign {

Napi::Error to_js_error(Napi::Env env, const std::string& code, const std::string& message) {
  Executor& executor = Executor::of(env);
  if (executor.has_constructor("Error"))
    return {env, executor.constructor("Error").New({Napi::String::New(env, code), Napi::String::New(env, message)})};
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  return error;
}

Napi::Value guarded(Napi::Env env, const std::function<Napi::Value()>& body) {
  try {
    return body();
  } catch (const Error& e) {
    throw to_js_error(env, e.code(), e.what());
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw to_js_error(env, "OUT_OF_MEMORY", "not enough memory");
  } catch (const std::length_error&) {
    throw to_js_error(env, "OUT_OF_MEMORY", "more than can be addressed");
  } catch (const std::exception& e) {
    throw to_js_error(env, "INTERNAL", e.what());
  }
}

Executor::Executor(Napi::Env env) {
  napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "pluralign"), 0, 1, nullptr, nullptr, this,
                                  settle, &settled_);
  napi_unref_threadsafe_function(env, settled_);
  // Hooks run newest first, so this one joins the thread while settled_ is still open.
  napi_add_env_cleanup_hook(env, close, this);
}

Executor& Executor::of(Napi::Env env) { return **env.GetInstanceData<std::unique_ptr<Executor>>(); }

Napi::Promise Executor::submit(std::unique_ptr<Job> job) {
  if (!thread_.joinable()) thread_ = std::thread([this] { loop(); });
  job->deferred.emplace(Napi::Promise::Deferred::New(job->env));
  const Napi::Promise promise = job->deferred->Promise();
  if (outstanding_++ == 0) napi_ref_threadsafe_function(job->env, settled_);
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(job.release());
  }
  wake_.notify_one();
  return promise;
}

const Device& Executor::device(const std::string& library, int ordinal) {
  const std::pair<std::string, int> key{library, ordinal};
  if (const auto found = devices_.find(key); found != devices_.end()) return found->second;
  return devices_.emplace(key, open_device(library, ordinal)).first->second;
}

Pool& Executor::pool(int threads) {
  if (threads < 1) threads = 1;
  auto& slot = pools_[threads];
  if (!slot) slot = std::make_unique<Pool>(threads);
  return *slot;
}

void Executor::loop() {
  for (;;) {
    Job* job;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return closing_ || !queue_.empty(); });
      if (closing_) break;
      job = queue_.front();
      queue_.pop_front();
    }
    try {
      const Cancel cancel(job->abort_flag, &closing_);
      cancel.check();
      job->work(cancel);
    } catch (const Error& e) {
      job->error_code = e.code();
      job->error_message = e.what();
    } catch (const std::bad_alloc&) {
      job->error_code = "OUT_OF_MEMORY";
      job->error_message = "not enough memory";
    } catch (const std::length_error&) {
      job->error_code = "OUT_OF_MEMORY";
      job->error_message = "more than can be addressed";
    } catch (const std::exception& e) {
      job->error_code = "INTERNAL";
      job->error_message = e.what();
    }
    if (napi_call_threadsafe_function(settled_, job, napi_tsfn_nonblocking) != napi_ok) break;
  }
  pools_.clear();
}

void Executor::settle(napi_env raw, napi_value, void* self, void* data) {
  std::unique_ptr<Job> job(static_cast<Job*>(data));
  if (!raw) return;  // the environment is going down: nobody is left to tell
  Napi::Env env(raw);
  Napi::HandleScope scope(env);
  auto* executor = static_cast<Executor*>(self);
  if (--executor->outstanding_ == 0) napi_unref_threadsafe_function(env, executor->settled_);
  try {
    try {
      if (!job->error_code.empty()) throw to_js_error(env, job->error_code, job->error_message);
      job->deferred->Resolve(job->result ? job->result(env) : env.Undefined());
    } catch (const Napi::Error& e) {
      job->deferred->Reject(e.Value());
    }
  } catch (const Napi::Error&) {
    // The environment is being terminated and runs no JavaScript any more: nobody is left to tell.
  }
}

void Executor::close(void* self) {
  auto* executor = static_cast<Executor*>(self);
  {
    std::lock_guard lock(executor->mutex_);
    executor->closing_ = true;
  }
  executor->wake_.notify_all();
  if (executor->thread_.joinable()) executor->thread_.join();
  // Models and banks of this environment, which go later, keep their memory until then.
  for (const auto& [key, device] : executor->devices_) device.close();
  executor->devices_.clear();
  for (Job* job : executor->queue_) delete job;
  executor->queue_.clear();
  executor->constructors_.clear();
  napi_release_threadsafe_function(executor->settled_, napi_tsfn_abort);
}

}  // namespace pluralign
