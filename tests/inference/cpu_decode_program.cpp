// All layers of cpu_decode.cpp, included by the command line, at small sizes: something for sanitizers to look at.

template <typename W>
struct Numbers {
    std::vector<std::vector<W>> all;
    W* take(Size count) {
        all.emplace_back(count);
        std::memset(static_cast<void*>(all.back().data()), 0x3c, count * sizeof(W));  // about 0.01, in both types
        return all.back().data();
    }
};

template <typename W>
void check(Size width, Size heads, Size channel, Size sequences, Size length, int threads, bool finch, bool quantized) {
    Numbers<W> numbers;
    Numbers<std::int8_t> codes;
    Numbers<float> floats;
    const auto norm = [&](Size groups) { return Norm<W>{numbers.take(width), numbers.take(width), groups, 1e-5}; };
    const auto low_rank = [&](Size rank, Size outputs) {
        return LowRank<W>{numbers.take(width * rank * outputs), numbers.take(width * rank * outputs), rank, outputs};
    };
    const auto matrix = [&](Size rows, Size columns) {
        if (quantized) return Matrix<W>{nullptr, codes.take(rows * columns), floats.take(rows)};
        return Matrix<W>{numbers.take(rows * columns), nullptr, nullptr};
    };
    const Shift<W> shift{numbers.take(width), numbers.take(5 * width), low_rank(16, 5)};
    const LowRank<W> none{nullptr, nullptr, 0, 0};
    const Layer<W> layer{norm(1), shift, 3, 1, 2, 0, 4, matrix(width, width), matrix(width, width),
                         matrix(width, width), finch ? matrix(width, width) : Matrix<W>{}, numbers.take(width),
                         low_rank(16, 1), finch ? none : low_rank(32, 1), finch ? numbers.take(width) : nullptr,
                         !finch, heads, norm(1), {}, norm(finch ? heads : 1), matrix(width, width), norm(1),
                         numbers.take(width), numbers.take(width), matrix(width, width), matrix(channel, width),
                         matrix(width, channel), channel};
    const Size state_size = width * width / heads, count = sequences * length;
    std::vector<State<W>> states;
    for (Size s = 0; s < sequences; ++s)
        states.push_back({nullptr, nullptr, nullptr, numbers.take(width), numbers.take(width), floats.take(state_size)});
    // Two blocks of kept keys and values, of which the newest tokens fill the second.
    const Size latent_width = 7, block_size = 33, vocab_size = 5;
    const std::vector<float> velocity(width / heads / 2, 1);
    Outside<W> outside{matrix(vocab_size, width), vocab_size, norm(1), numbers.take(latent_width * width),
                       numbers.take(width * (width + latent_width)), latent_width, velocity.data(), norm(1)};
    const std::vector<Size> ids(2 * count, vocab_size - 1);
    W *below = numbers.take(count * width), *above = numbers.take(count * width);
    std::vector<float> x(count * width, 0.5f), q(count * width), logits(count * channel);
    for (W* latents : {numbers.take(count * latent_width), static_cast<W*>(nullptr)})
        recurrent_layers(outside, &layer, states.data(), ids.data(), 1, sequences, length, width, threads, below, latents);
    for (State<W>& state : states)
        state = {state.last_after, state.channel_last_after, state.wkv_after, numbers.take(width), numbers.take(width),
                 floats.take(state_size)};
    recurrent_layers<W>(outside, &layer, states.data(), ids.data(), 1, sequences, length, width, threads, below, nullptr);
    Layer<W> gold = layer;
    gold.shift.low_rank = low_rank(16, 1);
    queries(&gold, states.data(), sequences, length, width, threads, x.data(), q.data());
    after_attention(&gold, states.data(), sequences, length, width, threads, x.data(), q.data());

    gold.expansion = {numbers.take(width), numbers.take(width), numbers.take(width), low_rank(16, 2), low_rank(16, 1),
                      low_rank(16, 1), norm(1), norm(1)};
    std::vector<W*> blocks;
    std::vector<Kept<W>> kept;
    blocks.reserve(4 * sequences);
    for (Size s = 0; s < sequences; ++s) {
        for (int i = 0; i < 4; ++i) blocks.push_back(numbers.take(block_size * width));
        kept.push_back({&blocks[4 * s], &blocks[4 * s + 2], block_size, block_size + length});
    }
    const Size missing = (length + 1) / 2;
    for (const float* turning : {velocity.data(), static_cast<const float*>(nullptr)}) {
        outside.velocity = turning;
        const KeyInputs<W> in{outside, ids.data(), numbers.take(sequences * (1 + missing) * latent_width), missing};
        gold_layers(&gold, states.data(), kept.data(), in, 1, sequences, length, width, threads, below, above);
    }
    linear_layer(layer.channel_key, channel, count, width, threads, x.data(), logits.data());
}

int main() {
    for (const bool quantized : {true, false})
    for (const bool finch : {true, false})
        for (const int threads : {1, 3}) {
            check<float>(32, 2, 48, 1, 1, threads, finch, quantized);
            check<float>(32, 2, 48, 3, 2, threads, finch, quantized);
            check<bfloat16>(48, 1, 16, 1, 7, threads, finch, quantized);
        }
}
