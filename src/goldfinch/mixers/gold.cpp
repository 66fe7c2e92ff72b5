// `Gold.mix` and `Gold.keys` in C++ for many tokens, a few at a time: called through ctypes by gold_cpu.py.

#include "mixers/gold.h"

namespace {

// The work of each group of tokens: work(first, count).
template <typename Work>
void in_groups(Size count, int threads, const Work& work) {
    run((count + GROUP - 1) / GROUP, threads,
        [&](Size group) { work(group * GROUP, std::min(GROUP, count - group * GROUP)); });
}

template <typename W>
void mix(const Expansion<W>& layer, const W* e, const W* before, Size count, Size width, int threads, W* weights,
         W* values) {
    in_groups(count, threads, [&](Size first, Size some) {
        const Size at = first * width;
        mix_group<W, W, W, W>(layer, {e + at, width}, {before + at, width}, some, width, {weights + at, width},
                           {values + at, width});
    });
}

template <typename W>
void keys(const Expansion<W>& layer, const W* kd, const W* before, const W* weights, const Size* rows, Size count,
          Size width, int threads, W* to) {
    in_groups(count, threads, [&](Size first, Size some) {
        const Size at = first * width;
        const auto row = [&](Size t) { return rows ? rows[first + t] : first + t; };
        keys_group<W, W, W>(layer, {kd + at, width}, {before + at, width}, {weights, width}, row, some, width,
                            Rows<W>{to + at, width});
    });
}

}  // namespace

#define INTERFACE(W, SUFFIX)                                                                                         \
    void mix_##SUFFIX(const W* e, const W* before, Size count, Size width, const W* mu, const W* mu_k, const W* mu_v, \
                      const W* shift_a, const W* shift_b, Size shift_rank, const W* adapter_a, const W* adapter_b,   \
                      Size adapter_rank, const W* weight, const W* bias, double eps, int threads, W* weights,        \
                      W* values) {                                                                                   \
        Expansion<W> layer{mu, mu_k, mu_v};                                                                          \
        layer.shift = {shift_a, shift_b, shift_rank, 2};                                                             \
        layer.value_adapter = {adapter_a, adapter_b, adapter_rank, 1};                                               \
        layer.value_norm = {weight, bias, 1, eps};                                                                   \
        mix(layer, e, before, count, width, threads, weights, values);                                               \
    }                                                                                                                \
    void keys_##SUFFIX(const W* kd, const W* before, const W* weights, const Size* rows, Size count, Size width,     \
                       const W* adapter_a, const W* adapter_b, Size adapter_rank, const W* weight, const W* bias,    \
                       double eps, int threads, W* to) {                                                             \
        Expansion<W> layer{};                                                                                        \
        layer.key_adapter = {adapter_a, adapter_b, adapter_rank, 1};                                                 \
        layer.key_norm = {weight, bias, 1, eps};                                                                     \
        keys(layer, kd, before, weights, rows, count, width, threads, to);                                           \
    }

extern "C" {
INTERFACE(float, float32)
INTERFACE(bfloat16, bfloat16)
}
