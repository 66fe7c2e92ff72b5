// What all C++ of this package is written with: vectors, and several threads.
//
// Plain C interfaces, no headers but the standard library's: compiled in seconds, called through ctypes. Vectors are
// those of GCC and Clang, which are correct on every processor and become as few instructions as it allows.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

// The threads of PyTorch, where it brings them: others would share the processors with these, which wait for work in a
// busy loop. All OpenMP libraries for GCC's and Clang's code have this entry.
extern "C" void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags) __attribute__((weak));

#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int VECTOR_BYTES = 64;

template <typename T>
struct Vector {
    static constexpr int lanes = VECTOR_BYTES / sizeof(T);
    typedef T type __attribute__((vector_size(VECTOR_BYTES)));

    static INLINE type load(const T* from) {
        type x;
        std::memcpy(&x, from, sizeof x);
        return x;
    }
    static INLINE void store(T* to, type x) { std::memcpy(to, &x, sizeof x); }
};

template <typename Work>
void run(std::int64_t tasks, int threads, const Work& work) {
    std::atomic<std::int64_t> next{0};
    const auto take = [&] {
        for (std::int64_t task = next++; task < tasks; task = next++) work(task);
    };
    threads = std::min<std::int64_t>(threads, tasks);
    if (threads > 1 && GOMP_parallel) {
        GOMP_parallel([](void* data) { (*static_cast<decltype(take)*>(data))(); }, (void*)&take, threads, 0);
        return;
    }
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(take);
    take();
    for (auto& other : others) other.join();
}

}  // namespace
