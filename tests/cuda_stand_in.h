// What of CUDA the norms' kernels use, for a C++ compiler: a GPU's blocks run one after the other on the CPU, and the
// threads of a block take turns. Each runs until it ends or waits for the others, then comes the next; in which order is
// `backwards`' to say, and must not matter.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

struct alignas(8) uint2 {
    unsigned x, y;
};

struct Index {
    unsigned x, y, z;
};

static Index threadIdx, blockIdx, blockDim, gridDim;
static bool backwards = false;

static inline float __uint_as_float(unsigned bits)
{
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static inline unsigned __float_as_uint(float value)
{
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

namespace stand_in {
constexpr std::size_t STACK = 32 * 1024;
struct Thread {
    ucontext_t context;
    bool ended;
};
static ucontext_t scheduler;
static std::vector<Thread> threads;
static std::vector<char> stacks;
static unsigned current;
static std::function<void()> kernel;

static void begin()
{
    kernel();
    threads[current].ended = true;
    swapcontext(&threads[current].context, &scheduler);
}

static void run_block(unsigned count)
{
    if (threads.size() < count) {
        threads.resize(count);
        stacks.resize(count * STACK);
    }
    for (unsigned i = 0; i < count; ++i) {
        threads[i].ended = false;
        getcontext(&threads[i].context);
        threads[i].context.uc_stack.ss_sp = &stacks[i * STACK];
        threads[i].context.uc_stack.ss_size = STACK;
        threads[i].context.uc_link = nullptr;
        makecontext(&threads[i].context, begin, 0);
    }
    for (bool running = true; running;) {
        running = false;
        for (unsigned i = 0; i < count; ++i) {
            current = backwards ? count - 1 - i : i;
            if (threads[current].ended)
                continue;
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &threads[current].context);
            running = running || !threads[current].ended;
        }
    }
}

template <class Word>
static Word word(std::uint64_t bits)
{
    static_assert(sizeof(Word) == sizeof bits, "an argument has 8 bytes");
    Word value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class... Words, std::size_t... I>
static void call(void (*function)(Words...), const std::uint64_t* words, std::index_sequence<I...>)
{
    function(word<Words>(words[I])...);
}

// False where the kernel takes another number of arguments.
template <class... Words>
static bool launch(
    void (*function)(Words...), unsigned across, unsigned down, unsigned count, const std::uint64_t* words,
    unsigned number)
{
    if (number != sizeof...(Words))
        return false;
    kernel = [=] { call(function, words, std::index_sequence_for<Words...>()); };
    gridDim = {across, down, 1};
    blockDim = {count, 1, 1};
    for (unsigned y = 0; y < down; ++y)
        for (unsigned x = 0; x < across; ++x) {
            blockIdx = {x, y, 0};
            run_block(count);
        }
    return true;
}
}  // namespace stand_in

static void __syncthreads()
{
    const unsigned mine = stand_in::current;
    swapcontext(&stand_in::threads[mine].context, &stand_in::scheduler);
}
