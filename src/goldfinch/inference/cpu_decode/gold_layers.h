// The GOLD layers, where keys and values are kept: those of the newest tokens are computed here and put behind the others.

#pragma once

#include "layers.h"
#include "ops/attention.h"

namespace {

// Kept keys, rotated, and values of one layer and one sequence: rows of D numbers in blocks of `block_size` rows.
template <typename W>
struct Kept {
    W *const *keys, *const *values;
    Size block_size, length;  // tokens, with the missing ones, whose rows are not filled yet
};

// What keys and values of the `missing` newest tokens of each sequence are computed from: theirs, behind that of the token
// before. After a rejected draft fewer are missing than there are queries.
template <typename W>
struct KeyInputs {
    const W* up;           // W_KU, (D, D + R)
    const float *x0;       // embeddings after ln0, (sequences, 1 + missing, D)
    const float *latents;  // (sequences, 1 + missing, R)
    Size missing, latent_width;
    const float* velocity;  // radians per position of each pair of a head's channels, (N / 2); null without rotary positions
};

// Turns the pairs of channels of each head by position * velocity.
INLINE void rotate(float* row, Size position, const float* velocity, Size heads, Size size) {
    for (Size pair = 0; pair < size / 2; ++pair) {
        const float angle = position * velocity[pair], cos = std::cos(angle), sin = std::sin(angle);
        for (Size head = 0; head < heads; ++head) {
            float* at = row + head * size + 2 * pair;
            const float even = at[0], odd = at[1];
            at[0] = even * cos - odd * sin;
            at[1] = even * sin + odd * cos;
        }
    }
}

// What the threads of a team share, for `tokens` tokens with those before them.
struct GoldBuffers {
    GoldBuffers(Size tokens, Size width, Size latent_width, Size sequences, Size pairs, Size size, int threads)
        : joined(tokens * (width + latent_width)), e(tokens * width), kd(tokens * width),
          each(pairs * (2 + size)), partial(each * sequences * threads), scores(pairs * TILE * threads),
          sequences(sequences), pairs(pairs) {}

    // The running softmax of one thread for one sequence.
    Running running(Size member, Size sequence) {
        float* at = partial.data() + (member * sequences + sequence) * each;
        return {at, at + pairs, at + 2 * pairs};
    }

    std::vector<float> joined;  // x0 and latents side by side
    std::vector<float> e, kd;   // what `Gold.mix` and `Gold.keys` begin with
    Size each;
    std::vector<float> partial, scores;
    Size sequences, pairs;
};

template <typename W>
struct GoldMember : Member<W> {
    using Member<W>::team, Member<W>::me, Member<W>::sequences, Member<W>::length, Member<W>::width, Member<W>::count;
    using Member<W>::b;
    const KeyInputs<W>& in;
    GoldBuffers& shared;

    GoldMember(const Member<W>& member, const KeyInputs<W>& in, GoldBuffers& shared)
        : Member<W>(member), in(in), shared(shared) {}

    // e and kD of the missing tokens and the ones before them (P14-16).
    void prepare() const {
        const Size joined_width = width + in.latent_width, all = sequences * (1 + in.missing);
        const Range tokens = share(team, me, all, 1);
        for (Size t = tokens.first; t < tokens.last; ++t) {
            float *joined = shared.joined.data() + t * joined_width, *e = shared.e.data() + t * width;
            std::copy_n(in.x0 + t * width, width, joined);
            std::copy_n(in.latents + t * in.latent_width, in.latent_width, joined + width);
            std::copy_n(joined, width, e);
            rms_normalize(e, width);
        }
        team.barrier();
        float* kd = shared.kd.data();
        linear(shared.joined.data(), all, in.up, joined_width, share(team, me, width, 4),
               [&](Size t, Size o, float dot) { kd[t * width + o] = dot; });
        team.barrier();
        for (Size t = tokens.first; t < tokens.last; ++t) rms_normalize(kd + t * width, width);
        team.barrier();
    }

    // Keys and values of the missing tokens for all layers, which do not depend on each other (P17-21).
    void expand(const Layer<W>* layers, const Kept<W>* kept, Size number) const {
        const Size groups = (in.missing + GROUP - 1) / GROUP, tasks = number * sequences * groups;
        for (Size task = me; task < tasks; task += team.size()) {
            const Size sequence = task / groups % sequences, first = task % groups * GROUP;
            const Size some = std::min(GROUP, in.missing - first);
            const Size before = (sequence * (1 + in.missing) + first) * width;
            const Layer<W>& layer = layers[task / groups / sequences];
            const Kept<W>& to = kept[task / groups];
            const float *e = shared.e.data() + before, *kd = shared.kd.data() + before;
            Group weights(width), values(width), keys(width);
            mix_group<float>(layer.expansion, {e + width, width}, {e, width}, some, width, Rows<float>(weights),
                             Rows<float>(values));
            keys_group<float>(
                layer.expansion, {kd + width, width}, {kd, width}, weights.from(), [](Size t) { return t; }, some, width,
                Rows<float>(keys));
            for (Size t = 0; t < some; ++t) {
                const Size position = to.length - in.missing + first + t;
                if (in.velocity) rotate(keys[t], position, in.velocity, layer.heads, width / layer.heads);
                copy(keys[t], to.keys, to.block_size, position);
                copy(values[t], to.values, to.block_size, position);
            }
        }
        team.barrier();
    }

    void copy(const float* row, W* const* blocks, Size block_size, Size position) const {
        W* to = blocks[position / block_size] + position % block_size * width;
        for (Size i = 0; i < width; i += LANES) store(to + i, load(row + i));
    }

    // b.y from b.r, the queries before their norm. Each thread attends to its share of the keys.
    void attend(const Layer<W>& layer, const Kept<W>* kept) const {
        const Size heads = layer.heads, size = width / heads;
        const float scale = 1 / std::sqrt(float(size));
        const Range tokens = share(team, me, count, 1);
        for (Size t = tokens.first; t < tokens.last; ++t) {
            float* q = b.k + t * width;
            normalize(layer.query_norm, b.r + t * width, width, q);
            const Size position = kept[t / length].length - length + t % length;
            if (in.velocity) rotate(q, position, in.velocity, heads, size);
            for (Size i = 0; i < width; i += LANES) store(q + i, load(q + i) * scale);
        }
        team.barrier();
        float* scores = shared.scores.data() + me * shared.pairs * TILE;
        for (Size sequence = 0; sequence < sequences; ++sequence) {
            const Kept<W>& cache = kept[sequence];
            const Queries queries{length, heads, size, b.k + sequence * length * width};
            const Running mine = shared.running(me, sequence);
            clear(queries, mine);
            const Range keys = share(team, me, cache.length, TILE);
            for (Size first = keys.first, last; first < keys.last; first = last) {
                const Size number = first / cache.block_size, start = number * cache.block_size;
                last = std::min({keys.last, first + TILE, start + cache.block_size});
                const Block<W> block{cache.keys[number], cache.values[number], size,  width, size, width, nullptr,
                                     cache.block_size,   start - (cache.length - length)};
                attend_tile(queries, block, first - start, last - start, scores, mine);
            }
        }
        team.barrier();
        const Range ours = this->mine_of_sequences();
        for (Size sequence = ours.first; sequence < ours.last; ++sequence) {
            const Queries queries{length, heads, size, nullptr};
            const Running all = shared.running(0, sequence);
            for (int member = 1; member < team.size(); ++member) add(queries, shared.running(member, sequence), all);
            float* y = b.y + sequence * length * width;
            for (Size pair = 0; pair < length * heads; ++pair)
                for (Size n = pair * size; n < (pair + 1) * size; n += LANES)
                    store(y + n, load(all.weighted + n) * (1 / all.weight[pair]));
        }
        team.barrier();
    }

    // One layer. kept, states: (sequences).
    void gold(const Layer<W>& layer, const State<W>* states, const Kept<W>* kept) const {
        this->shift(layer, states);
        this->product(layer.receptance, b.mixed, b.r);
        team.barrier();
        attend(layer, kept);
        this->finish(layer);
        this->channel_mix(layer, states);
    }
};

// All GOLD layers. states, kept: (layers, sequences).
template <typename W>
void gold_layers(const Layer<W>* layers, const State<W>* states, const Kept<W>* kept, const KeyInputs<W>& in,
                 Size number, Size sequences, Size length, Size width, int threads, float* x) {
    Buffers buffers = buffers_for(layers, number, sequences * length, width);
    const Size heads = layers->heads;
    GoldBuffers shared(sequences * (1 + in.missing), width, in.latent_width, sequences, length * heads, width / heads,
                       threads);
    Team team(threads);
    team.run([&](int me) {
        const GoldMember<W> member({team, me, sequences, length, width, x, buffers}, in, shared);
        member.prepare();
        member.expand(layers, kept, number);
        for (Size i = 0; i < number; ++i) member.gold(layers[i], states + i * sequences, kept + i * sequences);
    });
}

}  // namespace
