// Attention of a few queries on one block of keys and values, with a running softmax: every key and value is read once,
// in the order they lie in. `blockwise_causal_attention` is the truth it is tested against.

#pragma once

#include <limits>

#include "cpu/vector.h"

namespace {

constexpr Size TILE = 64;  // keys whose scores are held at once

template <typename W>
struct Block {
    const W *keys, *values;
    Size key_head, key_row, value_head, value_row;  // numbers from one head, one row, to the next
    const Size* rows;                               // the row of `values` of each key; null: its own
    Size count;
    Size position;  // of the first key, less that of the first query
};

struct Queries {
    Size count, heads, size;
    const float* q;  // (count, heads, size), scaled
};

// A running softmax: largest score and sum of weights, (count, heads), and the weighted values, (count, heads, size).
struct Running {
    float *highest, *weight, *weighted;
};

void clear(const Queries& queries, const Running& running) {
    const Size pairs = queries.count * queries.heads;
    std::fill_n(running.highest, pairs, -std::numeric_limits<float>::infinity());
    std::fill_n(running.weight, pairs, 0.0f);
    std::fill_n(running.weighted, pairs * queries.size, 0.0f);
}

void add(const Queries& queries, const Running& from, const Running& to) {
    for (Size i = 0; i < queries.count * queries.heads; ++i) {
        const float highest = std::max(from.highest[i], to.highest[i]);
        if (highest == -std::numeric_limits<float>::infinity()) continue;
        const Floats scores = {to.highest[i] - highest, from.highest[i] - highest};
        const Floats fading = exponential(scores);
        to.highest[i] = highest;
        to.weight[i] = to.weight[i] * fading[0] + from.weight[i] * fading[1];
        for (Size n = i * queries.size; n < (i + 1) * queries.size; n += LANES)
            store(to.weighted + n, load(to.weighted + n) * fading[0] + load(from.weighted + n) * fading[1]);
    }
}

// to += values of LANES keys, weighted. Rows are too far apart for the processor to guess the next ones: PREFETCH fetches
// those `ahead`.
template <int VECTORS, bool PREFETCH, typename W>
INLINE void add_values(const W* const* values, Size offset, Size ahead, const float* shares, float* to) {
    Floats totals[VECTORS];
    for (int j = 0; j < VECTORS; ++j) totals[j] = load(to + j * LANES);
    for (Size i = 0; i < LANES; ++i)
        for (int j = 0; j < VECTORS; ++j) {
            if (PREFETCH) __builtin_prefetch(values[i] + offset + j * LANES + ahead);
            totals[j] += shares[i] * load(values[i] + offset + j * LANES);
        }
    for (int j = 0; j < VECTORS; ++j) store(to + j * LANES, totals[j]);
}

// Keys first .. last - 1 of the block, at most TILE.
template <typename W>
void attend_tile(const Queries& queries, const Block<W>& block, Size first, Size last, float* scores,
                 const Running& running) {
    const Size size = queries.size, pairs = queries.count * queries.heads;
    for (Size s = first; s < last; s += LANES)
        for (Size head = 0; head < queries.heads; ++head) {
            const W* keys[LANES];
            for (Size i = 0; i < LANES; ++i)
                keys[i] = block.keys + head * block.key_head + std::min(s + i, last - 1) * block.key_row;
            for (Size t = 0; t < queries.count; ++t) {
                const Size pair = t * queries.heads + head;
                Floats products[LANES] = {};
                for (Size n = 0; n < size; n += LANES) {
                    const Floats q = load(queries.q + pair * size + n);
                    for (Size i = 0; i < LANES; ++i) {
                        if (t == 0) __builtin_prefetch(keys[i] + n + LANES * block.key_row);
                        products[i] += q * load(keys[i] + n);
                    }
                }
                store(scores + pair * TILE + s - first, sums(products));
            }
        }
    for (Size pair = 0; pair < pairs; ++pair) {
        // What lies after the query, and what is left of the tile, weighs nothing.
        const Size visible = pair / queries.heads - block.position + 1 - first;
        float* row = scores + pair * TILE;
        for (Size i = std::max<Size>(std::min(visible, last - first), 0); i < TILE; ++i)
            row[i] = -std::numeric_limits<float>::infinity();
        float highest = running.highest[pair];
        for (Size i = 0; i < TILE; ++i) highest = std::max(highest, row[i]);
        if (highest == -std::numeric_limits<float>::infinity()) {
            std::fill_n(row, TILE, 0.0f);
            continue;
        }
        Floats total{};
        for (Size i = 0; i < TILE; i += LANES) {
            const Floats scores = load(row + i);
            const Floats shares = scores < -3e38f ? Floats{} : exponential(scores - highest);
            store(row + i, shares);
            total += shares;
        }
        if (highest > running.highest[pair]) {
            const float fading = exponential(Floats{} + (running.highest[pair] - highest))[0];
            running.weight[pair] *= fading;
            for (Size n = pair * size; n < (pair + 1) * size; n += LANES)
                store(running.weighted + n, load(running.weighted + n) * fading);
            running.highest[pair] = highest;
        }
        running.weight[pair] += sum(total);
    }
    for (Size s = first; s < last; s += LANES) {
        const W* values[LANES];
        for (Size i = 0; i < LANES; ++i) {
            const Size key = std::min(s + i, last - 1);  // those after the last have no share
            values[i] = block.values + (block.rows ? block.rows[key] : key) * block.value_row;
        }
        const auto add_to = [&](Size pair, auto prefetch) {
            const float* shares = scores + pair * TILE + s - first;
            const Size offset = pair % queries.heads * block.value_head, ahead = LANES * block.value_row;
            float* to = running.weighted + pair * size;
            Size n = 0;
            for (; n + 4 * LANES <= size; n += 4 * LANES)
                add_values<4, prefetch.value>(values, offset + n, ahead, shares, to + n);
            for (; n < size; n += LANES) add_values<1, prefetch.value>(values, offset + n, ahead, shares, to + n);
        };
        // The first query of each head fetches for all.
        for (Size pair = 0; pair < queries.heads; ++pair) add_to(pair, std::true_type());
        for (Size pair = queries.heads; pair < pairs; ++pair) add_to(pair, std::false_type());
    }
}

}  // namespace
