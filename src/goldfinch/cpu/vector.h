// Vectors for all C++ of this package.
//
// Plain C interfaces, no headers but the standard library's: compiled in seconds, called through ctypes. Vectors are
// those of GCC and Clang, as wide as the registers of the processor that is compiled for: wider ones are correct too, but
// compilers pass them through memory. Nothing below depends on the width but through LANES and REGISTERS.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace {

typedef std::int64_t Size;

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, REGISTERS = 32;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int VECTOR_BYTES = 32, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, REGISTERS = 32;
#else
constexpr int VECTOR_BYTES = 16, REGISTERS = 16;
#endif

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

// LANES numbers, computed in fp32 however they are stored.
typedef Vector<float>::type Floats;
constexpr int LANES = Vector<float>::lanes;
typedef std::int32_t Integers __attribute__((vector_size(VECTOR_BYTES)));
typedef std::uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));

struct bfloat16 {
    std::uint16_t bits;
};

INLINE Floats load(const float* from) { return Vector<float>::load(from); }
INLINE Floats load(const bfloat16* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    const Integers bits = __builtin_convertvector(halves, Integers) << 16;
    Floats x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
INLINE Floats load(const std::int8_t* from) {
    typedef std::int8_t Bytes __attribute__((vector_size(LANES)));
#if defined(__GNUC__) && !defined(__clang__) && defined(__AVX2__)
    // GCC converts half of the bytes at a time, or one by one, where the processor has an instruction for all.
    typedef char Chars __attribute__((vector_size(16)));
    typedef long long Words __attribute__((vector_size(16)));
#if defined(__AVX512F__)
    Chars bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector((Integers)__builtin_ia32_pmovsxbd512_mask(bytes, Integers{}, -1), Floats);
#else
    long long bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector((Integers)__builtin_ia32_pmovsxbd256((Chars)Words{bytes, 0}), Floats);
#endif
#else
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, Integers), Floats);
#endif
}
INLINE float number(float x) { return x; }
INLINE float number(std::int8_t x) { return x; }
INLINE float number(bfloat16 x) {
    const std::uint32_t bits = std::uint32_t(x.bits) << 16;
    float number;
    std::memcpy(&number, &bits, sizeof bits);
    return number;
}
INLINE void store(float* to, Floats x) { Vector<float>::store(to, x); }
INLINE void store(bfloat16* to, Floats x) {
    typedef std::uint32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
    Bits bits;
    std::memcpy(&bits, &x, sizeof x);
    // To nearest even; NaN stays NaN.
    const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, nan = bits >> 16 | 0x40;
    const auto halves = __builtin_convertvector((bits & 0x7fffffff) <= 0x7f800000 ? rounded : nan, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

INLINE void store(float* to, float x) { *to = x; }
INLINE void store(bfloat16* to, float x) {
    bfloat16 all[LANES];
    store(all, Floats{} + x);
    *to = all[0];
}

// A vector of lanes of two: those of the second are numbered from LANES on.
template <int... LANE>
INLINE Floats shuffle(Floats a, Floats b) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, LANE...);
#else
    return __builtin_shuffle(a, b, Integers{LANE...});
#endif
}

// Two vectors consist of blocks of `BLOCK` lanes: the sum of the first and the second half of each block.
template <int BLOCK, int... I>
INLINE Floats add_halves(Floats a, Floats b, std::integer_sequence<int, I...>) {
    constexpr int HALF = BLOCK / 2;
    return shuffle<(I / HALF * BLOCK + I % HALF)...>(a, b) + shuffle<(I / HALF * BLOCK + I % HALF + HALF)...>(a, b);
}

// The sums of LANES vectors: every step halves the number of vectors and adds up what belongs together.
template <int COUNT = LANES>
INLINE Floats sums(Floats* x) {
    if constexpr (COUNT == 1) {
        return x[0];
    } else {
        for (int i = 0; i < COUNT / 2; ++i)
            x[i] = add_halves<COUNT>(x[2 * i], x[2 * i + 1], std::make_integer_sequence<int, LANES>());
        return sums<COUNT / 2>(x);
    }
}

// The sum of the lanes, added in the same order as by `sums`.
template <int COUNT = LANES>
INLINE float sum(Floats x) {
    if constexpr (COUNT == 1)
        return x[0];
    else
        return sum<COUNT / 2>(add_halves<COUNT>(x, x, std::make_integer_sequence<int, LANES>()));
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

INLINE Floats tanh(Floats x) {
    const Floats square = x * x;
    // Near zero the quotient would lose all precision.
    const Floats near = x + x * square * (-1 / 3.f + square * (2 / 15.f + square * (-17 / 315.f + square * (62 / 2835.f))));
    const Floats far = 1 - 2 / (1 + exponential(2 * x));
    return square < 0.09f ? near : far;
}

}  // namespace

// For Python: rows must be multiples of this. (Each library is one file, so that this is defined once.)
extern "C" std::int64_t vector_bytes() { return VECTOR_BYTES; }
