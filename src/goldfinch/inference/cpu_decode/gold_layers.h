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
    const Outside<W>& outside;
    const Size* ids;   // (sequences, 1 + missing)
    const W* latents;  // (sequences, 1 + missing, R)
    Size missing;
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

constexpr Size PARTS = 16;  // of the keys of a sequence, as tasks of threads; their number decides how sums are rounded

// What the threads of a team share, for `tokens` tokens with those before them.
struct GoldBuffers {
    GoldBuffers(Size tokens, Size width, Size latent_width, Size sequences, Size pairs, Size size, int threads)
        : joined(tokens * (width + latent_width)), e(tokens * width), kd(tokens * width),
          each(pairs * (2 + size)), partial(each * sequences * PARTS), scores(pairs * TILE * threads),
          pairs(pairs) {}

    // The running softmax of one part of the keys of one sequence.
    Running running(Size sequence, Size part) {
        float* at = partial.data() + (sequence * PARTS + part) * each;
        return {at, at + pairs, at + 2 * pairs};
    }

    std::vector<float> joined;  // x0 and latents side by side
    std::vector<float> e, kd;   // what `Gold.mix` and `Gold.keys` begin with
    Size each;
    std::vector<float> partial, scores;
    Size pairs;
};

template <typename W>
struct GoldMember : Member<W> {
    using Member<W>::team, Member<W>::me, Member<W>::sequences, Member<W>::length, Member<W>::width, Member<W>::count;
    using Member<W>::b, Member<W>::h;
    const KeyInputs<W>& in;
    GoldBuffers& shared;

    GoldMember(const Member<W>& member, const KeyInputs<W>& in, GoldBuffers& shared)
        : Member<W>(member), in(in), shared(shared) {}

    // e and kD of the missing tokens and the ones before them (P14-16).
    void prepare() const {
        const Size rank = in.outside.latent_width, joined_width = width + rank, all = sequences * (1 + in.missing);
        const Range tokens = share(team, me, all, 1);
        for (Size t = tokens.first; t < tokens.last; ++t) {
            float *joined = shared.joined.data() + t * joined_width, *e = shared.e.data() + t * width;
            embed(in.outside, in.ids[t], width, joined);
            for (Size i = 0; i < rank; ++i) joined[width + i] = number(in.latents[t * rank + i]);
            std::copy_n(joined, width, e);
            rms_normalize(e, width);
        }
        team.barrier();
        float* kd = shared.kd.data();
        team.each(tasks_of(team, width), [&](Size task) {
            linear_task(team, task, shared.joined.data(), all, Matrix<W>{in.outside.up}, joined_width, width,
                        [&](Size t, Size o, float dot) { kd[t * width + o] = dot; });
        });
        team.barrier();
        for (Size t = tokens.first; t < tokens.last; ++t) rms_normalize(kd + t * width, width);
        team.barrier();
    }

    // Keys and values of the missing tokens for all layers, which do not depend on each other (P17-21).
    void expand(const Layer<W>* layers, const Kept<W>* kept, Size number) const {
        const Size groups = (in.missing + GROUP - 1) / GROUP, tasks = number * sequences * groups;
        team.each(tasks, [&](Size task) {
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
                if (in.outside.velocity) rotate(keys[t], position, in.outside.velocity, layer.heads, width / layer.heads);
                copy(keys[t], to.keys, to.block_size, position);
                copy(values[t], to.values, to.block_size, position);
            }
        });
        team.barrier();
    }

    void copy(const float* row, W* const* blocks, Size block_size, Size position) const {
        W* to = blocks[position / block_size] + position % block_size * width;
        for (Size i = 0; i < width; i += LANES) store(to + i, load(row + i));
    }

    // b.y from b.r, the queries before their norm.
    void attend(const Layer<W>& layer, const Kept<W>* kept) const {
        const Size heads = layer.heads, size = width / heads;
        const float scale = 1 / std::sqrt(float(size));
        for (Size t = 0; t < count; ++t) {
            float* q = h + t * width;
            normalize(layer.query_norm, b.r + t * width, width, q);
            const Size position = kept[t / length].length - length + t % length;
            if (in.outside.velocity) rotate(q, position, in.outside.velocity, heads, size);
            for (Size i = 0; i < width; i += LANES) store(q + i, load(q + i) * scale);
        }
        float* scores = shared.scores.data() + me * shared.pairs * TILE;
        team.each(sequences * PARTS, [&](Size task) {
            const Size sequence = task / PARTS, part = task % PARTS;
            const Kept<W>& cache = kept[sequence];
            const Queries queries{length, heads, size, h + sequence * length * width};
            const Running sums = shared.running(sequence, part);
            clear(queries, sums);
            const Range keys = share(part, PARTS, cache.length, TILE);
            for (Size first = keys.first, last; first < keys.last; first = last) {
                const Size number = first / cache.block_size, start = number * cache.block_size;
                last = std::min({keys.last, first + TILE, start + cache.block_size});
                const Block<W> block{cache.keys[number], cache.values[number], size,  width, size, width, nullptr,
                                     cache.block_size,   start - (cache.length - length)};
                attend_tile(queries, block, first - start, last - start, scores, sums);
            }
        });
        team.barrier();
        const Range ours = this->mine_of_sequences();
        for (Size sequence = ours.first; sequence < ours.last; ++sequence) {
            const Queries queries{length, heads, size, nullptr};
            const Running all = shared.running(sequence, 0);
            for (Size part = 1; part < PARTS; ++part) add(queries, shared.running(sequence, part), all);
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
        this->query(layer);
        attend(layer, kept);
        this->finish(layer);
        this->channel_mix(layer, states);
    }
};

// All GOLD layers, and the norm behind them. states, kept: (layers, sequences); x, y: (sequences, length, D). False, and
// nothing done, if an id is not in the vocabulary.
template <typename W>
bool gold_layers(const Layer<W>* layers, const State<W>* states, const Kept<W>* kept, const KeyInputs<W>& in,
                 Size number, Size sequences, Size length, Size width, int threads, const W* from, W* y) {
    if (!all_known(in.outside, in.ids, sequences * (1 + in.missing))) return false;
    const Size count = sequences * length;
    std::vector<float> x(count * width);
    for (Size i = 0; i < count * width; i += LANES) store(x.data() + i, load(from + i));
    Buffers buffers = buffers_for(layers, number, count, width, threads);
    const Size heads = layers->heads;
    GoldBuffers shared(sequences * (1 + in.missing), width, in.outside.latent_width, sequences, length * heads, width / heads,
                       threads);
    Team team(threads);
    team.run([&](int me) {
        const GoldMember<W> member({team, me, sequences, length, width, x.data(), buffers}, in, shared);
        member.prepare();
        member.expand(layers, kept, number);
        for (Size i = 0; i < number; ++i) member.gold(layers[i], states + i * sequences, kept + i * sequences);
        const Range tokens = share(team, me, count, 1);
        for (Size t = tokens.first; t < tokens.last; ++t)
            normalize(in.outside.output_norm, x.data() + t * width, width, y + t * width);
    });
    return true;
}

}  // namespace
