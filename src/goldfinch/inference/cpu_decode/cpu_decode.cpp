// Interface of the fused decoder: called through ctypes by FusedDecoder.

#include "gold_layers.h"

namespace {

// Embeddings, the layers below GOLD, and the latents of what comes out, unless that is null. states: (layers, sequences);
// ids: (sequences, length). False, and nothing done, if an id is not in the vocabulary.
template <typename W>
bool recurrent_layers(const Outside<W>& outside, const Layer<W>* layers, const State<W>* states, const Size* ids,
                      Size number, Size sequences, Size length, Size width, int threads, W* y, W* latents) {
    const Size count = sequences * length;
    if (!all_known(outside, ids, count)) return false;
    Buffers shared = buffers_for(layers, number, count, width, threads);
    std::vector<float> x(count * width);
    Team team(threads);
    team.run([&](int me) {
        const Member<W> member{team, me, sequences, length, width, x.data(), shared};
        const Range tokens = share(team, me, count, 1);
        for (Size t = tokens.first; t < tokens.last; ++t) embed(outside, ids[t], width, x.data() + t * width);
        team.barrier();
        for (Size i = 0; i < number; ++i) member.recurrent(layers[i], states + i * sequences);
        for (Size i = tokens.first * width; i < tokens.last * width; i += LANES) {
            store(y + i, load(x.data() + i));
            store(x.data() + i, load(y + i));  // latents are those of what is stored
        }
        if (!latents) return;
        team.barrier();
        const Size rank = outside.latent_width;
        linear(x.data(), count, outside.down, width, share(team, me, rank, 4),
               [&](Size t, Size o, float dot) { store(latents + t * rank + o, dot); });
    });
    return true;
}

// A GOLD layer before its attention: q, not yet rotated. states: (sequences).
template <typename W>
void queries(const Layer<W>* layer, const State<W>* states, Size sequences, Size length, Size width, int threads,
             float* x, float* q) {
    Buffers shared = buffers_for(layer, 1, sequences * length, width, threads);
    Team team(threads);
    team.run([&](int me) {
        const Member<W> member{team, me, sequences, length, width, x, shared};
        member.shift(*layer, states);
        member.query(*layer);
        const Range tokens = share(team, me, member.count, 1);
        for (Size t = tokens.first; t < tokens.last; ++t)
            normalize(layer->query_norm, shared.r + t * width, width, q + t * width);
    });
}

// The rest of a GOLD layer, from y, the output of its attention.
template <typename W>
void after_attention(const Layer<W>* layer, const State<W>* states, Size sequences, Size length, Size width,
                     int threads, float* x, const float* y) {
    Buffers shared = buffers_for(layer, 1, sequences * length, width, threads);
    std::copy_n(y, sequences * length * width, shared.y);
    Team team(threads);
    team.run([&](int me) {
        const Member<W> member{team, me, sequences, length, width, x, shared};
        member.finish(*layer);
        member.channel_mix(*layer, states);
    });
}

// (count, width) x (rows, width)^T -> (count, rows).
template <typename W>
void linear_layer(const Matrix<W>& w, Size rows, Size count, Size width, int threads, const float* x, float* y) {
    Team team(threads);
    team.run([&](int me) {
        team.each(tasks_of(team, rows), [&](Size task) {
            linear_task(team, task, x, count, w, width, rows, [&](Size t, Size o, float dot) { y[t * rows + o] = dot; });
        });
    });
}

}  // namespace

#define INTERFACE(W, SUFFIX)                                                                                           \
    bool recurrent_layers_##SUFFIX(const void* outside, const void* layers, const void* states, const Size* ids,        \
                                  Size number, Size sequences, Size length, Size width, Size threads, void* y,          \
                                  void* latents) {                                                                     \
        return recurrent_layers(*(const Outside<W>*)outside, (const Layer<W>*)layers, (const State<W>*)states, ids,    \
                                number, sequences, length, width, threads, (W*)y, (W*)latents);                        \
    }                                                                                                                  \
    void queries_##SUFFIX(const void* layer, const void* states, Size sequences, Size length, Size width, Size threads, \
                          float* x, float* q) {                                                                        \
        queries((const Layer<W>*)layer, (const State<W>*)states, sequences, length, width, threads, x, q);             \
    }                                                                                                                  \
    void after_attention_##SUFFIX(const void* layer, const void* states, Size sequences, Size length, Size width,      \
                                  Size threads, float* x, const float* y) {                                             \
        after_attention((const Layer<W>*)layer, (const State<W>*)states, sequences, length, width, threads, x, y);     \
    }                                                                                                                  \
    bool gold_layers_##SUFFIX(const void* outside, const void* layers, const void* states, const void* kept,            \
                             const Size* ids, const void* latents, Size missing, Size number, Size sequences,          \
                             Size length, Size width, Size threads, const void* x, void* y) {                           \
        const KeyInputs<W> in{*(const Outside<W>*)outside, ids, (const W*)latents, missing};                           \
        return gold_layers((const Layer<W>*)layers, (const State<W>*)states, (const Kept<W>*)kept, in, number,         \
                           sequences, length, width, threads, (const W*)x, (W*)y);                                     \
    }                                                                                                                  \
    void linear_##SUFFIX(const void* w, Size rows, Size count, Size width, Size threads, const float* x, float* y) {    \
        linear_layer(*(const Matrix<W>*)w, rows, count, width, threads, x, y);                                         \
    }

extern "C" {
INTERFACE(float, float32)
INTERFACE(bfloat16, bfloat16)

Size outside_nbytes() { return sizeof(Outside<float>); }
Size layer_nbytes() { return sizeof(Layer<float>); }
Size matrix_nbytes() { return sizeof(Matrix<float>); }
Size state_nbytes() { return sizeof(State<float>); }
Size kept_nbytes() { return sizeof(Kept<float>); }
}
