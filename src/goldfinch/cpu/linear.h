// Products of matrices with a few vectors, as decoding needs them: bound by reading the weights, which are fp32 or bf16.
// Sums are fp32, and the same however many vectors are multiplied at once.

#pragma once

#include "vector.h"

namespace {

// y[t][o] = x[t] . w[o] for rows o of w, (rows, width); `done(t, o, dot)` receives each result.
template <int ROWS, int TOKENS, typename W, typename Done>
INLINE void products(const float* x, const W* w, Size width, Size row, const Done& done) {
    Floats partial[ROWS * TOKENS] = {};  // of row r and token t: partial[r * TOKENS + t]
    for (Size i = 0; i < width; i += LANES) {
        Floats inputs[TOKENS];
        for (int t = 0; t < TOKENS; ++t) inputs[t] = load(x + t * width + i);
        for (int r = 0; r < ROWS; ++r) {
            const W* at = w + (row + r) * width + i;
            __builtin_prefetch(at + 4 * width);
            const Floats weights = load(at);
            for (int t = 0; t < TOKENS; ++t) partial[r * TOKENS + t] += weights * inputs[t];
        }
    }
    if constexpr (ROWS * TOKENS == LANES) {
        const Floats dots = sums(partial);
        for (int r = 0; r < ROWS; ++r)
            for (int t = 0; t < TOKENS; ++t) done(t, row + r, dots[r * TOKENS + t]);
    } else {
        for (int r = 0; r < ROWS; ++r)
            for (int t = 0; t < TOKENS; ++t) done(t, row + r, sum(partial[r * TOKENS + t]));
    }
}

// The same for `count` tokens, (count, width), and a range of rows, whose bounds are multiples of 4.
template <typename W, typename Done>
void linear(const float* x, Size count, const W* w, Size width, Range rows, const Done& done) {
    for (Size row = rows.first; row < rows.last; row += 4) {
        Size t = 0;
        const auto later = [&](Size token, Size o, float dot) { done(t + token, o, dot); };
        // Blocks of as many sums as stay in registers. What is read again for other tokens is still in the nearest cache.
        if constexpr (REGISTERS >= 32) {
            for (; t + 8 <= count; t += 8)
                for (int half = 0; half < 4; half += 2) products<2, 8>(x + t * width, w, width, row + half, later);
            for (; t + 4 <= count; t += 4) products<4, 4>(x + t * width, w, width, row, later);
        } else {
            for (; t + 4 <= count; t += 4)
                for (int half = 0; half < 4; half += 2) products<2, 4>(x + t * width, w, width, row + half, later);
        }
        for (; t + 2 <= count; t += 2) products<4, 2>(x + t * width, w, width, row, later);
        for (; t < count; ++t) products<4, 1>(x + t * width, w, width, row, later);
    }
}

// y[columns] += x . w[:, columns] for one token; w is (inputs, width).
template <typename W>
INLINE void add_columns(const float* x, const W* w, Size inputs, Size width, Range columns, float* y) {
    for (Size column = columns.first; column < columns.last; column += LANES) {
        Floats total = load(y + column);
        for (Size i = 0; i < inputs; ++i) total += x[i] * load(w + i * width + column);
        store(y + column, total);
    }
}

}  // namespace
