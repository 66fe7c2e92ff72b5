// Both functions of gold.cpp, included by the command line, at odd sizes: something for sanitizers to look at.

template <typename W>
void check(Size count, Size width, Size shift_rank, Size adapter_rank, int threads) {
    const auto filled = [](Size size) {
        std::vector<W> numbers(size);
        std::memset(static_cast<void*>(numbers.data()), 0x3c, size * sizeof(W));  // about 0.01, in both types
        return numbers;
    };
    const auto rows = filled(count * width), vector = filled(width);
    const auto shift_a = filled(width * 2 * shift_rank), shift_b = filled(2 * shift_rank * width);
    const auto adapter = filled(width * adapter_rank);
    auto weights = filled(count * width), values = filled(count * width);
    const LowRank<W> shift{shift_a.data(), shift_b.data(), shift_rank, 2};
    const LowRank<W> adapters{adapter.data(), adapter.data(), adapter_rank, 1};
    const Norm<W> norm{vector.data(), vector.data(), 1, 1e-5};
    const Expansion<W> layer{vector.data(), vector.data(), vector.data(), shift, adapters, adapters, norm, norm};
    mix(layer, rows.data(), rows.data(), count, width, threads, weights.data(), values.data());
    const std::vector<Size> same(count, count - 1);
    for (const Size* places : {same.data(), static_cast<const Size*>(nullptr)})
        keys(layer, rows.data(), rows.data(), weights.data(), places, count, width, threads, values.data());
}

int main() {
    check<float>(1, 48, 16, 16, 2);
    check<float>(9, 80, 16, 32, 3);
    check<bfloat16>(6, 64, 32, 64, 1);
}
