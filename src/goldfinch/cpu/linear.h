// Products of matrices with a few vectors, as decoding needs them: bound by reading the weights: fp32, bf16, or int8 codes.
// Sums are fp32, and the same however many vectors are multiplied at once.

#pragma once

#include "cpu/threads.h"
#include "cpu/vector.h"

namespace {

// y[t][o] = x[t] . w[o] for rows o of w, (rows, width); `done(t, o, dot)` receives each result.
template <int ROWS, int TOKENS, typename W, typename Done>
INLINE void products(const float* x, const W* w, Size width, Size row, const Done& done) {
    Floats partial[ROWS * TOKENS] = {};  // of row r and token t: partial[r * TOKENS + t]
    const Size whole = width / LANES * LANES;
    const auto add = [&](Size i, int r) INLINE_LAMBDA {
        const Floats weights = load(w + (row + r) * width + i);
        for (int t = 0; t < TOKENS; ++t) partial[r * TOKENS + t] += weights * load(x + t * width + i);
    };
    const auto fetch = [&](Size i, int r) INLINE_LAMBDA { __builtin_prefetch(w + (row + r + 4) * width + i); };
    constexpr Size STEP = sizeof(W) == 1 ? 4 * LANES : LANES;  // codes are small: what is fetched at once is enough for more
    Size i = 0;
    for (; i + STEP <= whole; i += STEP)
        for (int r = 0; r < ROWS; ++r) {
            fetch(i, r);
            for (Size j = 0; j < STEP; j += LANES) add(i + j, r);
        }
    for (; i < whole; i += LANES)
        for (int r = 0; r < ROWS; ++r) add(i, r);
    const auto finish = [&](int t, int r, float dot) {
        for (Size i = whole; i < width; ++i) dot += number(w[(row + r) * width + i]) * x[t * width + i];
        done(t, row + r, dot);
    };
    if constexpr (ROWS * TOKENS == LANES) {
        const Floats dots = sums(partial);
        for (int r = 0; r < ROWS; ++r)
            for (int t = 0; t < TOKENS; ++t) finish(t, r, dots[r * TOKENS + t]);
    } else {
        for (int r = 0; r < ROWS; ++r)
            for (int t = 0; t < TOKENS; ++t) finish(t, r, sum(partial[r * TOKENS + t]));
    }
}

// The same for `count` tokens, (count, width), and a range of rows.
template <typename W, typename Done>
void linear(const float* x, Size count, const W* w, Size width, Range rows, const Done& done) {
    Size t = 0, row = rows.first;
    const auto later = [&](Size token, Size o, float dot) { done(t + token, o, dot); };
    for (; row + 4 <= rows.last; row += 4) {
        t = 0;
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
        // With four rows of bf16 at once, the processor fetches too little ahead.
        constexpr int ALONE = sizeof(W) == 2 ? 2 : 4;
        for (; t < count; ++t)
            for (int part = 0; part < 4; part += ALONE) products<ALONE, 1>(x + t * width, w, width, row + part, later);
    }
    for (; row < rows.last; ++row)
        for (t = 0; t < count; ++t) products<1, 1>(x + t * width, w, width, row, later);
}

// Into how many tasks for a team the product with a matrix of `rows` rows is cut: a few for each thread, as one may be held
// up, but of 16 rows or more, as each fetches some rows beyond its end.
INLINE Size tasks_of(const Team& team, Size rows) { return std::max<Size>(1, std::min<Size>(4 * team.size(), rows / 16)); }

// A matrix as PyTorch stores it: numbers, or codes with a scale for each row. All are null for one that is absent.
template <typename W>
struct Matrix {
    const W* numbers;
    const std::int8_t* codes;
    const float* scales;

    explicit operator bool() const { return numbers || codes; }
};

// The product with some rows of such a matrix.
template <typename W, typename Done>
void linear(const float* x, Size count, const Matrix<W>& w, Size width, Range rows, const Done& done) {
    if (w.numbers)
        linear(x, count, w.numbers, width, rows, done);
    else
        linear(x, count, w.codes, width, rows, [&](Size t, Size o, float dot) { done(t, o, dot * w.scales[o]); });
}

// One of these tasks.
template <typename W, typename Done>
void linear_task(const Team& team, Size task, const float* x, Size count, const Matrix<W>& w, Size width, Size rows,
                 const Done& done) {
    linear(x, count, w, width, share(task, tasks_of(team, rows), rows, 4), done);
}

// Rows of numbers that lie `stride` apart.
template <typename T>
struct Rows {
    T* numbers;
    Size stride;
    T* operator[](Size row) const { return numbers + row * stride; }
};

// Four tokens and a few columns, whose sums stay in registers.
template <int VECTORS, typename W>
INLINE void add_block(Rows<const float> x, const W* w, Size inputs, Size width, Size column, Rows<float> y) {
    Floats total[4][VECTORS];
    for (int t = 0; t < 4; ++t)
        for (int j = 0; j < VECTORS; ++j) total[t][j] = load(y[t] + column + j * LANES);
    for (Size i = 0; i < inputs; ++i) {
        Floats weights[VECTORS];
        for (int j = 0; j < VECTORS; ++j) weights[j] = load(w + i * width + column + j * LANES);
        for (int t = 0; t < 4; ++t)
            for (int j = 0; j < VECTORS; ++j) total[t][j] += x[t][i] * weights[j];
    }
    for (int t = 0; t < 4; ++t)
        for (int j = 0; j < VECTORS; ++j) store(y[t] + column + j * LANES, total[t][j]);
}

// One token: a few rows of w from end to end, as they lie in memory.
template <int ROWS, typename W>
INLINE void add_rows(const float* x, const W* w, Size width, Range columns, float* y) {
    for (Size column = columns.first; column < columns.last; column += LANES) {
        Floats total = load(y + column);
        for (int i = 0; i < ROWS; ++i) {
            __builtin_prefetch(w + (i + ROWS) * width + column);
            total += x[i] * load(w + i * width + column);
        }
        store(y + column, total);
    }
}

// y[t][columns] += x[t] . w[:, columns] for `count` tokens; w is (inputs, width).
template <typename W>
void add_columns(Rows<const float> x, Size count, const W* w, Size inputs, Size width, Range columns, Rows<float> y) {
    constexpr int VECTORS = REGISTERS >= 32 ? 4 : 2;  // times 4 tokens
    Size t = 0;
    for (; t + 4 <= count; t += 4) {
        Size column = columns.first;
        for (; column + VECTORS * LANES <= columns.last; column += VECTORS * LANES)
            add_block<VECTORS>({x[t], x.stride}, w, inputs, width, column, {y[t], y.stride});
        for (; column < columns.last; column += LANES)
            add_block<1>({x[t], x.stride}, w, inputs, width, column, {y[t], y.stride});
    }
    for (; t < count; ++t) {
        Size i = 0;
        for (; i + 4 <= inputs; i += 4) add_rows<4>(x[t] + i, w + i * width, width, columns, y[t]);
        for (; i < inputs; ++i) add_rows<1>(x[t] + i, w + i * width, width, columns, y[t]);
    }
}

// Weights of a layer norm, or of one for each of several groups of neighbours.
template <typename W>
struct Norm {
    const W *weight, *bias;
    Size groups;
    double eps;
};

template <typename W>
struct LowRank {
    const W *a, *b;  // (D, outputs * rank), (outputs, rank, D)
    Size rank, outputs;
};

// (x - mean) / sqrt(variance + eps) * weight + bias for each group of a row.
template <typename W, typename Y>
void normalize(const Norm<W>& norm, const float* x, Size width, Y* y) {
    const Size size = width / norm.groups;
    for (Size start = 0; start < width; start += size) {
        Floats total{}, squares{};
        for (Size i = start; i < start + size; i += LANES) total += load(x + i);
        const float mean = sum(total) / size;
        for (Size i = start; i < start + size; i += LANES) {
            const Floats apart = load(x + i) - mean;
            squares += apart * apart;
        }
        const float scale = 1 / std::sqrt(sum(squares) / size + norm.eps);
        for (Size i = start; i < start + size; i += LANES)
            store(y + i, (load(x + i) - mean) * scale * load(norm.weight + i) + load(norm.bias + i));
    }
}

// x / (rms(x) + 1e-8)
INLINE void rms_normalize(float* x, Size width) {
    Floats squares{};
    for (Size i = 0; i < width; i += LANES) squares += load(x + i) * load(x + i);
    const float scale = 1 / (std::sqrt(sum(squares) / width) + 1e-8f);
    for (Size i = 0; i < width; i += LANES) store(x + i, load(x + i) * scale);
}

}  // namespace
