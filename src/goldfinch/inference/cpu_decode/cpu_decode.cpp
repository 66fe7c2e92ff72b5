// Interface of the fused decoder: called through ctypes by FusedDecoder.

#include "gold_layers.h"

namespace {

// The layers below GOLD. states: (layers, sequences).
template <typename W>
void recurrent_layers(const Layer<W>* layers, const State<W>* states, Size number, Size sequences, Size length,
                      Size width, int threads, float* x) {
    Buffers shared = buffers_for(layers, number, sequences * length, width);
    Team team(threads);
    team.run([&](int me) {
        const Member<W> member{team, me, sequences, length, width, x, shared};
        for (Size i = 0; i < number; ++i) member.recurrent(layers[i], states + i * sequences);
    });
}

// A GOLD layer before its attention: q, not yet rotated. states: (sequences).
template <typename W>
void queries(const Layer<W>* layer, const State<W>* states, Size sequences, Size length, Size width, int threads,
             float* x, float* q) {
    Buffers shared = buffers_for(layer, 1, sequences * length, width);
    Team team(threads);
    team.run([&](int me) {
        const Member<W> member{team, me, sequences, length, width, x, shared};
        member.shift(*layer, states);
        member.product(layer->receptance, shared.mixed, shared.r);
        team.barrier();
        const Range tokens = share(team, me, member.count, 1);
        for (Size t = tokens.first; t < tokens.last; ++t)
            normalize(layer->query_norm, shared.r + t * width, width, q + t * width);
    });
}

// The rest of a GOLD layer, from y, the output of its attention.
template <typename W>
void after_attention(const Layer<W>* layer, const State<W>* states, Size sequences, Size length, Size width,
                     int threads, float* x, const float* y) {
    Buffers shared = buffers_for(layer, 1, sequences * length, width);
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
void linear_layer(const W* w, Size rows, Size count, Size width, int threads, const float* x, float* y) {
    Team team(threads);
    team.run([&](int me) {
        linear(x, count, w, width, share(team, me, rows, 4), [&](Size t, Size o, float dot) { y[t * rows + o] = dot; });
    });
}

}  // namespace

#define INTERFACE(W, SUFFIX)                                                                                           \
    void recurrent_layers_##SUFFIX(const void* layers, const void* states, Size number, Size sequences, Size length,   \
                                   Size width, int threads, float* x) {                                                \
        recurrent_layers((const Layer<W>*)layers, (const State<W>*)states, number, sequences, length, width, threads,  \
                         x);                                                                                           \
    }                                                                                                                  \
    void queries_##SUFFIX(const void* layer, const void* states, Size sequences, Size length, Size width, int threads, \
                          float* x, float* q) {                                                                        \
        queries((const Layer<W>*)layer, (const State<W>*)states, sequences, length, width, threads, x, q);             \
    }                                                                                                                  \
    void after_attention_##SUFFIX(const void* layer, const void* states, Size sequences, Size length, Size width,      \
                                  int threads, float* x, const float* y) {                                             \
        after_attention((const Layer<W>*)layer, (const State<W>*)states, sequences, length, width, threads, x, y);     \
    }                                                                                                                  \
    void gold_layers_##SUFFIX(const void* layers, const void* states, const void* kept, const void* up,                \
                              const float* velocity, Size missing, Size latent_width, Size number, Size sequences,     \
                              Size length, Size width, int threads, const float* x0, const float* latents, float* x) { \
        const KeyInputs<W> in{(const W*)up, x0, latents, missing, latent_width, velocity};                             \
        gold_layers((const Layer<W>*)layers, (const State<W>*)states, (const Kept<W>*)kept, in, number, sequences,     \
                    length, width, threads, x);                                                                        \
    }                                                                                                                  \
    void linear_##SUFFIX(const void* w, Size rows, Size count, Size width, int threads, const float* x, float* y) {    \
        linear_layer((const W*)w, rows, count, width, threads, x, y);                                                  \
    }

extern "C" {
INTERFACE(float, float32)
INTERFACE(bfloat16, bfloat16)

Size layer_nbytes() { return sizeof(Layer<float>); }
Size state_nbytes() { return sizeof(State<float>); }
Size kept_nbytes() { return sizeof(Kept<float>); }
}
