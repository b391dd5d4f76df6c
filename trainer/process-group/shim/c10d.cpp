// A C interface to libtorch's distributed engine, c10d. A `C_tensor` of tch is an `at::Tensor*`.
//
// Functions that can fail return whether they succeeded; if not, `error` is a message that the caller frees.
#include <cstdlib>
#include <cstring>
#include <mutex>

#include <c10/util/Logging.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

using std::chrono::milliseconds;
using Tensors = std::vector<at::Tensor>;
template <class T> using ptr = c10::intrusive_ptr<T>;

struct Group {
  ptr<c10d::Store> store;
  milliseconds timeout;
  int rank = 0;
  int size = 0;
  // For tensors in CPU memory and on GPUs. All ranks create the second one at their first collective on a GPU.
  ptr<c10d::Backend> gloo;
  ptr<c10d::Backend> nccl;

  c10d::Backend& backend(const at::Tensor& tensor) {
    if (!tensor.is_cuda()) return *gloo;
#ifdef USE_C10D_NCCL
    if (!nccl) {
      // After a failure the communicators are aborted, so that waiting for them ends with an error. By default the process
      // would be aborted, without a message and without saving.
      setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2", 0);
      auto options = c10d::ProcessGroupNCCL::Options::create();
      options->timeout = timeout;
      auto keys = c10::make_intrusive<c10d::PrefixStore>("nccl", store);
      nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(keys, rank, size, options);
    }
    return *nccl;
#else
    TORCH_CHECK(false, "this build has no NCCL; run `make setup CUDA=1` and rebuild");
#endif
  }

  // Unless `waits`, only the GPU's stream waits for the sum, and a failure is one of the next sum that waits: with a time-out,
  // NCCL blocks the CPU until the GPU is there.
  void all_reduce_sum(at::Tensor& tensor, bool waits) {
    Tensors tensors{tensor};
    auto work = backend(tensor).allreduce(tensors);
    if (waits || !tensor.is_cuda()) work->wait(timeout);
    else work->wait();
  }
};

// The sum over all ranks. The gradient of its argument is the sum of the gradients of all ranks.
struct AllReduceSum : torch::autograd::Function<AllReduceSum> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& tensor, int64_t group) {
    context->saved_data["group"] = group;
    return sum(tensor, group);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    return {sum(gradients[0], context->saved_data["group"].toInt()), at::Tensor()};
  }

  static at::Tensor sum(const at::Tensor& tensor, int64_t group) {
    auto total = tensor.clone(at::MemoryFormat::Contiguous);
    // A forward pass has many of these sums.
    reinterpret_cast<Group*>(group)->all_reduce_sum(total, false);
    return total;
  }
};

template <class F> static bool run(char** error, F&& f) {
  try {
    f();
    return true;
  } catch (const c10::Error& e) {
    *error = strdup(e.what_without_backtrace());
  } catch (const std::exception& e) {
    *error = strdup(e.what());
  } catch (...) {
    *error = strdup("an exception of unknown type");
  }
  return false;
}

extern "C" {

// Connects to the store at `host`. If `listener` is a socket, this process serves the store there; -1: it does not.
bool c10d_connect(Group** group, const char* host, uint16_t port, int listener, int64_t timeout_ms, const char* prefix,
                  char** error) {
  return run(error, [&] {
    // Errors come back as messages; libtorch's own warnings about them would be printed besides.
    setenv("TORCH_CPP_LOG_LEVEL", "ERROR", 0);
    static std::once_flag once;
    std::call_once(once, [] { c10::initLogging(); });
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = listener >= 0;
    if (listener >= 0) options.masterListenFd = listener;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    *group = new Group{c10::make_intrusive<c10d::PrefixStore>(prefix, store), options.timeout};
  });
}

void c10d_free(Group* group) {
  // Its threads would otherwise end while the process does.
  char* error = nullptr;
  if (group->nccl) run(&error, [&] { group->nccl->shutdown(); });
  free(error);
  delete group;
}

// Sets a key of the store unless it has a value; `found` is the value that it has then.
bool c10d_claim(Group* group, const char* key, const char* value, char** found, char** error) {
  return run(error, [&] { *found = strdup(group->store->compareSet(key, std::string(), value).c_str()); });
}

// Sets a key of the store.
bool c10d_set(Group* group, const char* key, const char* value, char** error) {
  return run(error, [&] { group->store->set(key, std::string(value)); });
}

// Whether a key of the store has a value.
bool c10d_has(Group* group, const char* key, bool* has, char** error) {
  return run(error, [&] { *has = group->store->check({key}); });
}

// Waits until a key of the store has a value.
bool c10d_get(Group* group, const char* key, int64_t timeout_ms, char** found, char** error) {
  return run(error, [&] {
    group->store->wait({key}, milliseconds(timeout_ms));
    *found = strdup(group->store->get_to_str(key).c_str());
  });
}

// Connects the ranks with each other. `interface`: address to listen on; null: that of this machine's name, or of
// GLOO_SOCKET_IFNAME.
bool c10d_open(Group* group, int rank, int size, const char* interface, char** error) {
  return run(error, [&] {
    group->rank = rank;
    group->size = size;
    using Gloo = c10d::ProcessGroupGloo;
    auto options = interface ? Gloo::Options::create(group->timeout) : Gloo::Options::create_default(group->timeout);
    if (interface) options->devices.push_back(Gloo::createDeviceForHostname(interface));
    auto keys = c10::make_intrusive<c10d::PrefixStore>("gloo", group->store);
    group->gloo = c10::make_intrusive<Gloo>(keys, rank, size, options);
  });
}

bool c10d_all_reduce_sum(Group* group, at::Tensor* tensor, bool waits, char** error) {
  return run(error, [&] { group->all_reduce_sum(*tensor, waits); });
}

// `total` is a new tensor.
bool c10d_differentiable_sum(Group* group, const at::Tensor* tensor, at::Tensor** total, char** error) {
  return run(error, [&] {
    *total = new at::Tensor(AllReduceSum::apply(*tensor, reinterpret_cast<int64_t>(group)));
  });
}

bool c10d_broadcast(Group* group, at::Tensor* tensor, int root, char** error) {
  return run(error, [&] {
    Tensors tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    group->backend(*tensor).broadcast(tensors, options)->wait(group->timeout);
  });
}

// Both are flat; `all` has `size` times as many elements as `one`.
bool c10d_all_gather(Group* group, at::Tensor* all, at::Tensor* one, char** error) {
  return run(error, [&] { group->backend(*one)._allgather_base(*all, *one)->wait(group->timeout); });
}

bool c10d_barrier(Group* group, char** error) {
  return run(error, [&] { group->gloo->barrier()->wait(group->timeout); });
}

}
