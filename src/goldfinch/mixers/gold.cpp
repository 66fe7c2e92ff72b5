// What GOLD rebuilds from the key cache, `Gold.mix` and `Gold.keys` (P17-21), a few tokens at a time from start to end,
// without writing intermediate results to memory. Tests compare it with the PyTorch code of the same methods.
//
// Rows are fp32 or bf16, as the model's weights are; everything is computed in fp32. All widths are multiples of LANES.

#include "vector.h"

namespace {

constexpr int ROWS = 4;                            // tokens at a time, so that weights are loaded once for several
constexpr int VECTORS = REGISTERS >= 32 ? 4 : 2;  // of their products, which stay in registers

template <typename W>
struct LowRank {
    const W *a, *b;  // (D, outputs * rank), (outputs, rank, D)
    Size rank;
};

template <typename W>
struct Norm {
    const W *weight, *bias;
    double eps;
};

// Rows of at most ROWS tokens.
struct Rows {
    explicit Rows(Size width) : width(width), numbers(ROWS * width) {}
    float* operator[](Size row) { return numbers.data() + row * width; }
    Size width;
    std::vector<float> numbers;
};

template <int VECTORS, typename W>
INLINE void multiply_columns(Rows& x, Size first, const W* matrix, Size inputs, Size column, Rows& y) {
    Floats sums[ROWS][VECTORS];
    for (int row = 0; row < ROWS; ++row)
        for (int i = 0; i < VECTORS; ++i) sums[row][i] = load(y[row] + column + i * LANES);
    for (Size input = 0; input < inputs; ++input) {
        Floats weights[VECTORS];
        for (int i = 0; i < VECTORS; ++i) weights[i] = load(matrix + input * y.width + column + i * LANES);
        for (int row = 0; row < ROWS; ++row)
            for (int i = 0; i < VECTORS; ++i) sums[row][i] += x[row][first + input] * weights[i];
    }
    for (int row = 0; row < ROWS; ++row)
        for (int i = 0; i < VECTORS; ++i) store(y[row] + column + i * LANES, sums[row][i]);
}

// y += x[first ...] matrix, the matrix (inputs, y.width).
template <typename W>
INLINE void multiply(Rows& x, Size first, const W* matrix, Size inputs, Rows& y) {
    Size column = 0;
    for (; column + VECTORS * LANES <= y.width; column += VECTORS * LANES)
        multiply_columns<VECTORS>(x, first, matrix, inputs, column, y);
    for (; column < y.width; column += LANES) multiply_columns<1>(x, first, matrix, inputs, column, y);
}

INLINE void tanh(Rows& x) {
    for (Size i = 0; i < ROWS * x.width; i += LANES) {
        float* at = x.numbers.data() + i;
        const Floats value = load(at), square = value * value;
        // Near zero the quotient would lose all precision.
        const Floats near = value + value * square * (-1 / 3.f + square * (2 / 15.f + square * (-17 / 315.f + square * (62 / 2835.f))));
        const Floats far = 1 - 2 / (1 + exponential(2 * value));
        store(at, square < 0.09f ? near : far);
    }
}

// y += tanh(x A) B[output]
template <typename W>
INLINE void add_low_rank(Rows& x, const LowRank<W>& low_rank, Rows& hidden, Rows& y) {
    std::fill(hidden.numbers.begin(), hidden.numbers.end(), 0.f);
    multiply(x, 0, low_rank.a, x.width, hidden);
    tanh(hidden);
    multiply(hidden, 0, low_rank.b, low_rank.rank, y);
}

// The work of each group of tokens: work(first, last).
template <typename Work>
void in_groups(Size count, int threads, const Work& work) {
    run((count + ROWS - 1) / ROWS, count > ROWS ? threads : 1,
        [&](Size group) { work(group * ROWS, std::min((group + 1) * ROWS, count)); });
}

template <typename W>
void mix(const W* e, const W* before, Size count, Size width, const W* mu, const W* mu_k, const W* mu_v,
         const LowRank<W>& shift, const LowRank<W>& adapter, const Norm<W>& norm, int threads, W* weights, W* values) {
    in_groups(count, threads, [&](Size first, Size last) {
        Rows z(width), k(width), v(width), low(2 * shift.rank), hidden(adapter.rank), now(width), apart(width);
        for (Size t = first; t < last; ++t)
            for (Size i = 0; i < width; i += LANES) {
                const Floats here = load(e + t * width + i), difference = load(before + t * width + i) - here;
                store(now[t - first] + i, here);
                store(apart[t - first] + i, difference);
                store(z[t - first] + i, here + difference * load(mu + i));
                store(k[t - first] + i, load(mu_k + i));
                store(v[t - first] + i, load(mu_v + i));
            }
        multiply(z, 0, shift.a, width, low);
        tanh(low);
        multiply(low, 0, shift.b, shift.rank, k);
        multiply(low, shift.rank, shift.b + shift.rank * width, shift.rank, v);
        for (Size t = first; t < last; ++t)
            for (Size i = 0; i < width; i += LANES) {
                store(weights + t * width + i, load(k[t - first] + i));
                store(v[t - first] + i, load(now[t - first] + i) + load(apart[t - first] + i) * load(v[t - first] + i));
            }
        z.numbers = v.numbers;
        add_low_rank(z, adapter, hidden, v);
        for (Size t = first; t < last; ++t) normalize(v[t - first], norm.weight, norm.bias, norm.eps, width, values + t * width);
    });
}

template <typename W>
void keys(const W* kd, const W* before, const W* weights, const Size* rows, Size count, Size width,
          const LowRank<W>& adapter, const Norm<W>& norm, int threads, W* to) {
    in_groups(count, threads, [&](Size first, Size last) {
        Rows k(width), total(width), hidden(adapter.rank);
        for (Size t = first; t < last; ++t) {
            const W* weight = weights + (rows ? rows[t] : t) * width;
            for (Size i = 0; i < width; i += LANES) {
                const Floats here = load(kd + t * width + i);
                const Floats mixed = here + (load(before + t * width + i) - here) * load(weight + i);
                store(k[t - first] + i, mixed);
                store(total[t - first] + i, mixed);
            }
        }
        add_low_rank(k, adapter, hidden, total);
        for (Size t = first; t < last; ++t) normalize(total[t - first], norm.weight, norm.bias, norm.eps, width, to + t * width);
    });
}

}  // namespace

#define INTERFACE(W, SUFFIX)                                                                                         \
    void mix_##SUFFIX(const W* e, const W* before, Size count, Size width, const W* mu, const W* mu_k, const W* mu_v, \
                      const W* shift_a, const W* shift_b, Size shift_rank, const W* adapter_a, const W* adapter_b,   \
                      Size adapter_rank, const W* weight, const W* bias, double eps, int threads, W* weights,        \
                      W* values) {                                                                                   \
        mix<W>(e, before, count, width, mu, mu_k, mu_v, {shift_a, shift_b, shift_rank},                              \
               {adapter_a, adapter_b, adapter_rank}, {weight, bias, eps}, threads, weights, values);                 \
    }                                                                                                                \
    void keys_##SUFFIX(const W* kd, const W* before, const W* weights, const Size* rows, Size count, Size width,     \
                       const W* adapter_a, const W* adapter_b, Size adapter_rank, const W* weight, const W* bias,    \
                       double eps, int threads, W* to) {                                                             \
        keys<W>(kd, before, weights, rows, count, width, {adapter_a, adapter_b, adapter_rank}, {weight, bias, eps},  \
                threads, to);                                                                                        \
    }

extern "C" {
INTERFACE(float, float32)
INTERFACE(bfloat16, bfloat16)
}
