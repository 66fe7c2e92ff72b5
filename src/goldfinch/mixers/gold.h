// What GOLD rebuilds from the key cache, `Gold.mix` and `Gold.keys` (P17-21), for a few tokens from start to end, without
// writing intermediate results to memory. Tests compare it with the PyTorch code of the same methods.
//
// Weights are fp32 or bf16; everything is computed in fp32. All widths are multiples of LANES.

#pragma once

#include "cpu/linear.h"

namespace {

constexpr Size GROUP = 4;  // tokens at a time, so that weights are loaded once for several

// The parameters of a GOLD layer that keys and values depend on.
template <typename W>
struct Expansion {
    const W *mu_e, *mu_k, *mu_v;
    LowRank<W> shift;  // two outputs: weights that mix keys, and values
    LowRank<W> key_adapter, value_adapter;
    Norm<W> key_norm, value_norm;
};

// Rows of one group of tokens.
struct Group {
    explicit Group(Size width) : width(width), numbers(GROUP * width) {}
    float* operator[](Size row) { return numbers.data() + row * width; }
    operator Rows<float>() { return {numbers.data(), width}; }
    Rows<const float> from(Size column = 0) const { return {numbers.data() + column, width}; }
    Size width;
    std::vector<float> numbers;
};

// tanh(x A), (count, outputs * rank)
template <typename W>
Group hidden(const Group& x, Size count, const LowRank<W>& low_rank) {
    Group low(low_rank.outputs * low_rank.rank);
    add_columns(x.from(), count, low_rank.a, x.width, low.width, {0, low.width}, low);
    for (Size i = 0; i < count * low.width; i += LANES) store(low[0] + i, tanh(load(low[0] + i)));
    return low;
}

// y += x B[output] for x of `hidden`
template <typename W>
void add_low_rank(const Group& x, Size count, const LowRank<W>& low_rank, Size output, Group& y) {
    const W* b = low_rank.b + output * low_rank.rank * y.width;
    add_columns(x.from(output * low_rank.rank), count, b, low_rank.rank, y.width, {0, y.width}, y);
}

// `Gold.mix` for up to GROUP tokens: e of the tokens and of those before them -> weights and values.
template <typename E, typename W, typename Weight, typename Value>
void mix_group(const Expansion<W>& layer, Rows<const E> e, Rows<const E> before, Size count, Size width,
               Rows<Weight> weights, Rows<Value> values) {
    Group z(width), k(width), v(width);
    const auto lerp = [&](Size t, Size i, Floats weight) {
        const Floats now = load(e[t] + i);
        return now + (load(before[t] + i) - now) * weight;
    };
    for (Size t = 0; t < count; ++t)
        for (Size i = 0; i < width; i += LANES) {
            store(z[t] + i, lerp(t, i, load(layer.mu_e + i)));
            store(k[t] + i, load(layer.mu_k + i));
            store(v[t] + i, load(layer.mu_v + i));
        }
    const Group low = hidden(z, count, layer.shift);
    add_low_rank(low, count, layer.shift, 0, k);
    add_low_rank(low, count, layer.shift, 1, v);
    for (Size t = 0; t < count; ++t)
        for (Size i = 0; i < width; i += LANES) {
            store(weights[t] + i, load(k[t] + i));
            store(v[t] + i, lerp(t, i, load(v[t] + i)));
        }
    add_low_rank(hidden(v, count, layer.value_adapter), count, layer.value_adapter, 0, v);
    for (Size t = 0; t < count; ++t) normalize(layer.value_norm, v[t], width, values[t]);
}

// `Gold.keys` for up to GROUP tokens; row(t) is the row of `weights` of token t.
template <typename K, typename W, typename Weight, typename Row, typename Key>
void keys_group(const Expansion<W>& layer, Rows<const K> kd, Rows<const K> before, Rows<const Weight> weights,
                const Row& row, Size count, Size width, Rows<Key> to) {
    Group k(width);
    for (Size t = 0; t < count; ++t)
        for (Size i = 0; i < width; i += LANES) {
            const Floats now = load(kd[t] + i);
            store(k[t] + i, now + (load(before[t] + i) - now) * load(weights[row(t)] + i));
        }
    add_low_rank(hidden(k, count, layer.key_adapter), count, layer.key_adapter, 0, k);
    for (Size t = 0; t < count; ++t) normalize(layer.key_norm, k[t], width, to[t]);
}

}  // namespace
