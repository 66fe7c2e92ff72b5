// Vectors and threads for all C++ of this package.
//
// Plain C interfaces, no headers but the standard library's: compiled in seconds, called through ctypes. Vectors are
// those of GCC and Clang, which are correct on every processor and become as few instructions as it allows.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

// PyTorch's threads, if it has any: others would compete with these, which wait for work in a busy loop. All OpenMP
// libraries for GCC's and Clang's code have these entries.
extern "C" void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags) __attribute__((weak));
extern "C" int omp_get_num_threads() __attribute__((weak));

#define INLINE inline __attribute__((always_inline))

namespace {

typedef std::int64_t Size;

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

// Sixteen numbers, computed in fp32 however they are stored.
typedef Vector<float>::type Floats;
constexpr int LANES = Vector<float>::lanes;
typedef std::int32_t Integers __attribute__((vector_size(VECTOR_BYTES)));

struct bfloat16 {
    std::uint16_t bits;
};

INLINE Floats load(const float* from) { return Vector<float>::load(from); }
INLINE Floats load(const bfloat16* from) {
    typedef std::uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    const Integers bits = __builtin_convertvector(halves, Integers) << 16;
    Floats x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
INLINE void store(float* to, Floats x) { Vector<float>::store(to, x); }
INLINE void store(bfloat16* to, Floats x) {
    for (int lane = 0; lane < LANES; ++lane) {
        std::uint32_t bits;
        std::memcpy(&bits, reinterpret_cast<const float*>(&x) + lane, sizeof bits);
        // To nearest even; NaN stays NaN.
        const bool number = (bits & 0x7fffffff) <= 0x7f800000;
        to[lane].bits = number ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40;
    }
}

// Sixteen lanes of two vectors, by their numbers: those of the second begin at 16.
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Integers){__VA_ARGS__})
#endif

// The sums of sixteen vectors: every step halves the number of vectors and adds up what belongs together.
INLINE Floats sums(Floats x[LANES]) {
#define ADD_HALVES(count, low, high) \
    for (int i = 0; i < count; ++i) x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], low) + SHUFFLE(x[2 * i], x[2 * i + 1], high);
#define LIST(...) __VA_ARGS__
    ADD_HALVES(8, LIST(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
               LIST(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
    ADD_HALVES(4, LIST(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27),
               LIST(4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31))
    ADD_HALVES(2, LIST(0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29),
               LIST(2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31))
    ADD_HALVES(1, LIST(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
               LIST(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31))
#undef ADD_HALVES
#undef LIST
    return x[0];
}

INLINE float sum(Floats x) {
    x += SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    x += SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    x += SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return x[0] + x[1];
}

// e^x within 2 units of the last place for x in -87.3 .. 88.3, and as at these borders outside: 2^n p(f), n + f = x / ln 2.
INLINE Floats exponential(Floats x) {
    x = x < -87.3f ? Floats{} - 87.3f : x;
    x = x > 88.3f ? Floats{} + 88.3f : x;
    const Floats shift = Floats{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Floats n = (x * 1.44269504f + shift) - shift;
    const Floats f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    const Integers scale = (__builtin_convertvector(n, Integers) + 127) << 23;
    Floats two_to_n;
    std::memcpy(&two_to_n, &scale, sizeof scale);
    return p * two_to_n;
}

// (x - mean) / sqrt(variance + eps) * weight + bias over `size` numbers.
template <typename W, typename Y>
INLINE void normalize(const float* x, const W* weight, const W* bias, double eps, std::int64_t size, Y* y) {
    Floats total{}, squares{};
    for (std::int64_t i = 0; i < size; i += LANES) total += load(x + i);
    const float mean = sum(total) / size;
    for (std::int64_t i = 0; i < size; i += LANES) {
        const Floats apart = load(x + i) - mean;
        squares += apart * apart;
    }
    const float scale = 1 / std::sqrt(sum(squares) / size + eps);
    for (std::int64_t i = 0; i < size; i += LANES)
        store(y + i, (load(x + i) - mean) * scale * load(weight + i) + load(bias + i));
}

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
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        // Steps take microseconds: asking the system to wait would take longer. But another process may have the
        // processor that the last one needs.
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
            if (spins > PATIENCE) std::this_thread::yield();
    }

    // The work of every member: work(member), members counted from 0.
    template <typename Work>
    void run(const Work& work) {
        std::atomic<int> next{0};
        const auto member = [&] {
            // There may be fewer threads than requested.
            if (GOMP_parallel && size_ > 1) size_ = omp_get_num_threads();
            work(next++);
        };
        if (size_ > 1 && GOMP_parallel) {
            GOMP_parallel([](void* data) { (*static_cast<decltype(member)*>(data))(); }, (void*)&member, size_, 0);
            return;
        }
        std::vector<std::thread> others;
        for (int i = 1; i < size_; ++i) others.emplace_back(member);
        member();
        for (auto& other : others) other.join();
    }

  private:
    static constexpr int PATIENCE = 1 << 14;
    std::atomic<int> size_, arrived_{0};
    std::atomic<unsigned> round_{0};
};

struct Range {
    std::int64_t first, last;
};

// One member's part of `count` things, of which `unit` at a time stay together.
inline Range share(const Team& team, int member, std::int64_t count, std::int64_t unit) {
    const std::int64_t units = (count + unit - 1) / unit;
    const auto border = [&](std::int64_t i) { return std::min(units * i / team.size() * unit, count); };
    return {border(member), border(member + 1)};
}

}  // namespace
