// A few tokens through the layers of a model, all layers in one call. Decoding is bound by reading the weights: here
// each weight is read once for all tokens of all sequences. The PyTorch modules define the equations, and tests compare
// with them.
//
// Weights are fp32 or bf16, as PyTorch stores them, and matrices perhaps int8; everything else is computed in fp32. All
// widths are multiples of LANES.
// Rows are tokens: those of the first sequence, then those of the second ..., equally many of each.

#pragma once

#include <memory>

#include "mixers/gold.h"

namespace {

// Structures of pointers and sizes, filled by structures.py with the same fields in the same order; their sizes are
// compared when the library is loaded.
template <typename W>
struct Shift {  // DataDependentLerp
    const W *mu_x, *mu;
    LowRank<W> low_rank;
};

// A time mix, Finch, Finch-C2 or what GOLD does with its queries, and a channel mix. Absent parts are null pointers.
template <typename W>
struct Layer {
    Norm<W> norm;
    Shift<W> shift;
    Size use_r, use_k, use_v, use_w, use_extra;  // which output of the shift is for what; extra: the gate or v2
    Matrix<W> receptance, key, value, gate;      // GOLD: receptance is the query
    const W* decay_base;
    LowRank<W> decay, second_value;
    const W* bonus;
    Size one_minus_w, heads;
    Norm<W> query_norm;
    Expansion<W> expansion;  // GOLD
    Norm<W> output_norm;
    Matrix<W> output;
    Norm<W> channel_norm;
    const W *channel_mu_r, *channel_mu_k;
    Matrix<W> channel_receptance, channel_key, channel_value;
    Size channel_width;

    // Where the mix for a use is kept: that for the second value behind that for the first.
    Size slot(Size use) const {
        if (!second_value.a || use <= use_v || use > use_extra) return use;
        return use == use_extra ? use_v + 1 : use + 1;
    }
};

// What is not in a layer. Absent parts are null pointers.
template <typename W>
struct Outside {
    Matrix<W> embedding;  // (V, D)
    Size vocab_size;
    Norm<W> embedding_norm;
    const W *down, *up;  // W_KD, (R, D), and W_KU, (D, D + R), in models with GOLD layers
    Size latent_width;
    const float* velocity;  // radians per position of each pair of a head's channels, (N / 2); null without rotary positions
    Norm<W> output_norm;
};

// The embedding of a token after ln0.
template <typename W>
void embed(const Outside<W>& outside, Size id, Size width, float* to) {
    const Matrix<W>& rows = outside.embedding;
    for (Size i = id * width; i < (id + 1) * width; i += LANES)
        store(to + i - id * width, rows.numbers ? load(rows.numbers + i) : load(rows.codes + i) * rows.scales[id]);
    normalize(outside.embedding_norm, to, width, to);
}

// Whether all ids are in the vocabulary.
template <typename W>
bool all_known(const Outside<W>& outside, const Size* ids, Size count) {
    return std::all_of(ids, ids + count, [&](Size id) { return 0 <= id && id < outside.vocab_size; });
}

// The state of one layer and one sequence before these tokens, and where to write the state after them.
template <typename W>
struct State {
    const W *last, *channel_last;
    const float* wkv;
    W *last_after, *channel_last_after;
    float* wkv_after;
};

INLINE Floats sigmoid(Floats x) { return 1 / (1 + exponential(-x)); }

// Intermediate results of `count` tokens. What is cheap to compute, each thread computes for itself: waiting for the
// others would take longer.
class Buffers {
  public:
    Buffers(Size count, Size width, Size hidden, Size channel, int threads)
        : numbers(new float[count * ((12 + 4 * threads) * width + hidden + channel) + LANES]), at(numbers.get()),
          size(count * width) {
        for (float** rows : {&r, &k, &v, &extra, &y, &gate, &w}) *rows = take(size);
        mixed = take(5 * size);
        low = take(count * hidden);
        inner = take(count * channel);
        own_ = take(4 * threads * size);
    }
    float *r, *k, *v, *extra, *y, *gate, *w;  // (count, width); the rows of `extra` follow those of v
    float* mixed;                             // (uses, count, width)
    float* low;                               // (count, ranks)
    float* inner;                             // (count, channel width)

    // One of 4 times (count, width) of one thread.
    float* own(int member, int which) const { return own_ + (4 * member + which) * size; }

  private:
    float* take(Size count) {
        float* taken = at;
        at += count;
        return taken;
    }
    std::unique_ptr<float[]> numbers;
    float* at;
    Size size;
    float* own_;
};

// What each thread of the team does for a layer.
template <typename W>
struct Member {
    Team& team;
    int me;
    Size sequences, length, width;  // tokens: `length` of each sequence
    float* x;                       // (sequences * length, width), the residual stream
    Buffers& b;
    Size count = sequences * length;
    float *h = b.own(me, 0), *z = b.own(me, 1), *for_r = b.own(me, 2), *for_k = b.own(me, 3);  // (count, width), its own

    Range columns() const { return share(team, me, width, LANES); }

    // h = norm(x), and the shift's mixes of it: b.mixed.
    void shift(const Layer<W>& layer, const State<W>* states) const {
        const Shift<W>& shift = layer.shift;
        const LowRank<W>& low_rank = shift.low_rank;
        const Size ranks = low_rank.rank * low_rank.outputs;
        for (Size t = 0; t < count; ++t) {
            normalize(layer.norm, x + t * width, width, h + t * width);
            for (Size i = 0; i < width; i += LANES)
                store(z + t * width + i, mix(h, t, i, states[t / length].last, load(shift.mu_x + i)));
        }
        hidden(z, low_rank, b.low);
        team.barrier();
        const Range mine = columns();
        for (Size use = 0; use < low_rank.outputs; ++use) {
            float* mixed = b.mixed + layer.slot(use) * count * width;
            add_low_rank({b.low + use * low_rank.rank, ranks}, low_rank, use, shift.mu + use * width, mine, {0, count},
                         mixed);
            for (Size t = 0; t < count; ++t)
                for (Size i = mine.first; i < mine.last; i += LANES) {
                    float* weights = mixed + t * width + i;
                    store(weights, mix(h, t, i, states[t / length].last, load(weights)));
                }
        }
        for (Size s = mine_of_sequences().first; s < mine_of_sequences().last; ++s) store_last(s, states[s].last_after);
        team.barrier();
    }

    Range mine_of_sequences() const { return share(team, me, sequences, 1); }

    // The last row of h of a sequence: what the next token shift reaches back to.
    void store_last(Size sequence, W* to) const {
        const float* from = h + ((sequence + 1) * length - 1) * width;
        for (Size i = 0; i < width; i += LANES) store(to + i, load(from + i));
    }

    // lerp of a token and the one before it in its sequence.
    Floats mix(const float* rows, Size t, Size i, const W* last, Floats weight) const {
        const Floats now = load(rows + t * width + i);
        const Floats before = t % length ? load(rows + (t - 1) * width + i) : last ? load(last + i) : Floats{};
        return now + (before - now) * weight;
    }

    // tanh(rows A): this thread's columns of it.
    void hidden(const float* rows, const LowRank<W>& low_rank, float* to) const {
        const Size ranks = low_rank.rank * low_rank.outputs;
        const Range mine = share(team, me, ranks, LANES);
        for (Size t = 0; t < count; ++t) std::fill(to + t * ranks + mine.first, to + t * ranks + mine.last, 0.0f);
        add_columns({rows, width}, count, low_rank.a, width, ranks, mine, {to, ranks});
        for (Size t = 0; t < count; ++t)
            for (Size i = mine.first; i < mine.last; i += LANES)
                store(to + t * ranks + i, tanh(load(to + t * ranks + i)));
    }

    // to = base + low B[output], or to += low B[output] without a base: these columns of these tokens.
    void add_low_rank(Rows<const float> low, const LowRank<W>& low_rank, Size output, const W* base, Range columns,
                      Range tokens, float* to) const {
        if (base)
            for (Size t = tokens.first; t < tokens.last; ++t)
                for (Size i = columns.first; i < columns.last; i += LANES) store(to + t * width + i, load(base + i));
        add_columns({low[tokens.first], low.stride}, tokens.last - tokens.first,
                    low_rank.b + output * low_rank.rank * width, low_rank.rank, width, columns,
                    {to + tokens.first * width, width});
    }

    // The product with one matrix of (D, D), of which task 0 .. tasks_of(team, width) - 1 is to be done.
    void product(Size task, const Matrix<W>& w, const float* from, float* to, Size rows) const {
        linear_task(team, task, from, rows, w, width, width, [&](Size t, Size o, float dot) { to[t * width + o] = dot; });
    }

    // b.r, the queries of a GOLD layer before their norm.
    void query(const Layer<W>& layer) const {
        team.each(tasks_of(team, width), [&](Size task) { product(task, layer.receptance, b.mixed, b.r, count); });
        team.barrier();
    }

    void recurrent(const Layer<W>& layer, const State<W>* states) const {
        const auto mixed = [&](Size use) { return b.mixed + layer.slot(use) * count * width; };
        shift(layer, states);
        float *decay_low = b.low, *value_low = b.low + count * layer.decay.rank;
        hidden(mixed(layer.use_w), layer.decay, decay_low);
        if (layer.second_value.a) hidden(mixed(layer.use_extra), layer.second_value, value_low);
        const Size tasks = tasks_of(team, width);
        team.each((layer.gate ? 4 : 3) * tasks, [&](Size all) {
            const Size task = all % tasks;
            switch (all / tasks) {
                case 0: return product(task, layer.receptance, mixed(layer.use_r), b.r, count);
                case 1: return product(task, layer.key, mixed(layer.use_k), b.k, count);
                // The second value is the same product: the rows it mixes lie behind those of the first.
                case 2: return product(task, layer.value, mixed(layer.use_v), b.v, layer.second_value.a ? 2 * count : count);
                default: return product(task, layer.gate, mixed(layer.use_extra), b.extra, count);
            }
        });
        team.barrier();
        team.each(sequences * layer.heads, [&](Size task) {
            recur(layer, states[task / layer.heads], task / layer.heads, task % layer.heads, decay_low, value_low);
        });
        team.barrier();
        finish(layer);
        channel_mix(layer, states);
    }

    // One head of one sequence: decays, the recurrence, the second value or the bonus.
    void recur(const Layer<W>& layer, const State<W>& state, Size sequence, Size head, const float* decay_low,
               const float* value_low) const {
        const Size size = width / layer.heads, first = head * size;
        const Range mine{first, first + size};
        float* s = state.wkv_after + first * size;
        if (state.wkv)
            std::copy_n(state.wkv + first * size, size * size, s);
        else
            std::fill_n(s, size * size, 0.0f);
        const Range tokens{sequence * length, (sequence + 1) * length};
        add_low_rank({decay_low, layer.decay.rank}, layer.decay, 0, layer.decay_base, mine, tokens, b.w);
        for (Size t = tokens.first; t < tokens.last; ++t) {
            const float *r = b.r + t * width, *v = b.v + t * width;
            float *k = b.k + t * width, *w = b.w + t * width, *y = b.y + t * width;
            float bonus = 0;
            for (Size i = mine.first; i < mine.last; ++i) {
                const float log_w = -std::exp(w[i]);
                w[i] = std::exp(log_w);
                if (layer.one_minus_w) k[i] *= -std::expm1(log_w);
            }
            if (layer.bonus)
                for (Size i = mine.first; i < mine.last; i += LANES)
                    bonus += sum(load(r + i) * load(layer.bonus + i) * load(k + i));
            for (Size j = mine.first; j < mine.last; j += LANES) {
                const Floats value = load(v + j);
                Floats total = bonus * value;
                float* column = s + (j - first);
                for (Size i = 0; i < size; ++i) {
                    const Floats before = load(column + i * size);
                    total += r[first + i] * before;
                    store(column + i * size, w[first + i] * before + k[first + i] * value);
                }
                store(y + j, total);
            }
            if (layer.second_value.a)
                for (Size i = mine.first; i < mine.last; i += LANES)
                    store(y + i, load(y + i) + load(b.extra + t * width + i));
        }
        if (layer.second_value.a)
            add_low_rank({value_low, layer.second_value.rank}, layer.second_value, 0, nullptr, mine, tokens, b.y);
    }

    // x += W_O norm(y), gated where there is a gate.
    void finish(const Layer<W>& layer) const {
        for (Size t = 0; t < count; ++t) {
            float* to = h + t * width;
            normalize(layer.output_norm, b.y + t * width, width, to);
            if (layer.gate)
                for (Size i = 0; i < width; i += LANES) {
                    const Floats gate = load(b.extra + t * width + i);
                    store(to + i, load(to + i) * gate * sigmoid(gate));
                }
        }
        team.each(tasks_of(team, width), [&](Size task) {
            linear_task(team, task, h, count, layer.output, width, width,
                        [&](Size t, Size o, float dot) { x[t * width + o] += dot; });
        });
        team.barrier();
    }

    void channel_mix(const Layer<W>& layer, const State<W>* states) const {
        for (Size t = 0; t < count; ++t) {
            const W* last = states[t / length].channel_last;
            normalize(layer.channel_norm, x + t * width, width, h + t * width);
            for (Size i = 0; i < width; i += LANES) {
                store(for_r + t * width + i, mix(h, t, i, last, load(layer.channel_mu_r + i)));
                store(for_k + t * width + i, mix(h, t, i, last, load(layer.channel_mu_k + i)));
            }
        }
        for (Size s = mine_of_sequences().first; s < mine_of_sequences().last; ++s)
            store_last(s, states[s].channel_last_after);
        const Size inner = layer.channel_width, before = tasks_of(team, width);
        team.each(before + tasks_of(team, inner), [&](Size task) {
            if (task < before)
                linear_task(team, task, for_r, count, layer.channel_receptance, width, width,
                            [&](Size t, Size o, float dot) { b.gate[t * width + o] = sigmoid(Floats{} + dot)[0]; });
            else
                linear_task(team, task - before, for_k, count, layer.channel_key, width, inner, [&](Size t, Size o, float dot) {
                    const float positive = std::max(dot, 0.0f);
                    b.inner[t * inner + o] = positive * positive;
                });
        });
        team.barrier();
        team.each(before, [&](Size task) {
            linear_task(team, task, b.inner, count, layer.channel_value, inner, width,
                        [&](Size t, Size o, float dot) { x[t * width + o] += b.gate[t * width + o] * dot; });
        });
        team.barrier();
    }
};

template <typename W>
Buffers buffers_for(const Layer<W>* layers, Size number, Size count, Size width, int threads) {
    Size hidden = 0, channel = 0;
    for (Size i = 0; i < number; ++i) {
        const Layer<W>& layer = layers[i];
        const Size ranks = layer.shift.low_rank.rank * layer.shift.low_rank.outputs;
        hidden = std::max({hidden, ranks, layer.decay.rank + layer.second_value.rank});
        channel = std::max(channel, layer.channel_width);
    }
    return Buffers(count, width, hidden, channel, threads);
}

}  // namespace
