// Threads for all C++ of this package: PyTorch's own, if it has any.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

// PyTorch's threads, if it has any: others would compete with these, which wait for work in a busy loop. All OpenMP
// libraries for GCC's and Clang's code have these entries.
extern "C" void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags) __attribute__((weak));
extern "C" int omp_get_num_threads() __attribute__((weak));

namespace {

// work() on each of several threads; with OpenMP there may be fewer than requested.
template <typename Work>
void on_threads(int threads, const Work& work) {
    if (threads > 1 && GOMP_parallel) {
        GOMP_parallel([](void* data) { (*static_cast<const Work*>(data))(); }, (void*)&work, threads, 0);
        return;
    }
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(work);
    work();
    for (auto& other : others) other.join();
}

// work(task) for each of `tasks` tasks, by whichever thread is free.
template <typename Work>
void run(std::int64_t tasks, int threads, const Work& work) {
    std::atomic<std::int64_t> next{0};
    on_threads(std::min<std::int64_t>(threads, tasks), [&] {
        for (std::int64_t task = next++; task < tasks; task = next++) work(task);
    });
}

// Threads that run the same code together, each with its share of every loop.
class Team {
  public:
    explicit Team(int wanted) : size_(wanted) {}

    int size() const { return size_; }

    // Nobody passes before all have arrived.
    void barrier() {
        const unsigned round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            next_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        // Steps take microseconds: asking the system to wait would take longer. But another process may have the
        // processor that the last one needs.
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
            spins > PATIENCE ? std::this_thread::yield() : relax();
    }

    // work(task) for each of `tasks` tasks, by whichever member is free: another program may hold one of them up. All
    // members call it, and only once between two barriers.
    template <typename Work>
    void each(std::int64_t tasks, const Work& work) {
        for (std::int64_t task = next_++; task < tasks; task = next_++) work(task);
    }

    // The work of every member: work(member), members counted from 0.
    template <typename Work>
    void run(const Work& work) {
        std::atomic<int> next{0};
        on_threads(size_, [&] {
            if (GOMP_parallel && size_ > 1) size_ = omp_get_num_threads();
            work(next++);
        });
    }

  private:
    // Leaves the core to its other thread, where it has two.
    static void relax() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    static constexpr int PATIENCE = 1 << 12;
    std::atomic<int> size_, arrived_{0};
    std::atomic<unsigned> round_{0};
    std::atomic<std::int64_t> next_{0};
};

struct Range {
    std::int64_t first, last;
};

// One of several parts of `count` things, of which `unit` at a time stay together.
inline Range share(std::int64_t part, std::int64_t parts, std::int64_t count, std::int64_t unit) {
    const std::int64_t units = (count + unit - 1) / unit;
    const auto border = [&](std::int64_t i) { return std::min(units * i / parts * unit, count); };
    return {border(part), border(part + 1)};
}

// One member's part of them.
inline Range share(const Team& team, int member, std::int64_t count, std::int64_t unit) {
    return share(member, team.size(), count, unit);
}

}  // namespace
