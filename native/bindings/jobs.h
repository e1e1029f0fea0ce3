// Work off the main thread: one queue and one thread per Node environment, so that jobs run in the order they were
// asked for and an environment that ends (a worker that is terminated) waits for the job in hand, which sees `closing`.
#pragma once
#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/cancel.h"
#include "base/pool.h"
#include "device/device.h"

namespace pluralign {

struct Job {
  explicit Job(Napi::Env env) : env(env) {}

  // Keeps a JavaScript value alive until the job has settled; typed arrays passed to native code need this.
  void keep(const Napi::Value& value) {
    if (value.IsObject()) kept.push_back(Napi::Persistent(value.As<Napi::Object>()));
  }

  Napi::Env env;
  std::optional<Napi::Promise::Deferred> deferred;  // made when the job is submitted: one that is never settled leaks
  std::vector<Napi::ObjectReference> kept;
  const int32_t* abort_flag = nullptr;
  std::function<void(const Cancel&)> work;          // on the job thread; throws Error
  std::function<Napi::Value(Napi::Env)> result;     // on the main thread; undefined where empty
  std::string error_code, error_message;
};

class Executor {
 public:
  explicit Executor(Napi::Env env);
  static Executor& of(Napi::Env env);

  // Takes the job and returns its promise. Main thread only.
  Napi::Promise submit(std::unique_ptr<Job> job);

  // A pool of that many threads, made on first use. Only from inside a job: jobs do not overlap, so pools are not shared.
  Pool& pool(int threads);

  // A device of a library, opened once. Likewise only from inside a job.
  const Device& device(const std::string& library, int ordinal);

  // Classes of this environment, for code that makes their objects. Main thread only.
  void keep_constructor(const char* name, Napi::Function constructor) { constructors_[name] = Napi::Persistent(constructor); }
  Napi::FunctionReference& constructor(const char* name) { return constructors_.at(name); }
  bool has_constructor(const char* name) const { return constructors_.count(name) != 0; }

 private:
  static void close(void* self);
  static void settle(napi_env env, napi_value, void* self, void* job);
  void loop();

  napi_threadsafe_function settled_ = nullptr;
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job*> queue_;
  std::atomic<bool> closing_{false};
  int outstanding_ = 0;  // main thread only
  std::map<int, std::unique_ptr<Pool>> pools_;
  std::map<std::pair<std::string, int>, Device> devices_;
  std::map<std::string, Napi::FunctionReference> constructors_;
};

// Runs `body` and turns Error (and std exceptions) into a JavaScript error with `code`.
Napi::Value guarded(Napi::Env env, const std::function<Napi::Value()>& body);
// A PluralignError where lib/native/loader.ts has named that class (`useErrorClass`), else an Error with `code`.
Napi::Error to_js_error(Napi::Env env, const std::string& code, const std::string& message);

}  // namespace pluralign
