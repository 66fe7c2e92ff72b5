// Runs kernels on inputs of a file and writes their outputs to another: for processors that only an emulator runs here.
// Included by the command line: one source of kernels, whose name is defined.

#include <cstdio>
#include <cstdlib>

struct File {
    File(const char* name, const char* mode) : file(std::fopen(name, mode)) {
        if (!file) std::exit(2);
    }
    ~File() { std::fclose(file); }
    std::FILE* file;
};

// The next array: its length, then its numbers.
template <typename T>
std::vector<T> next(File& in) {
    std::int64_t length;
    if (std::fread(&length, sizeof length, 1, in.file) != 1) std::exit(3);
    std::vector<T> numbers(length);
    if (std::fread((void*)numbers.data(), sizeof(T), length, in.file) != std::size_t(length)) std::exit(4);
    return numbers;
}

void put(File& out, const std::vector<float>& numbers) { std::fwrite(numbers.data(), sizeof(float), numbers.size(), out.file); }

int main(int, char** names) {
    File in(names[1], "rb"), out(names[2], "wb");
    const auto sizes = next<std::int64_t>(in);
#if defined(WKV6)
    const std::int64_t b = sizes[0], t = sizes[1], h = sizes[2], n = sizes[3];
    const auto r = next<float>(in), k = next<float>(in), v = next<float>(in), w = next<float>(in), u = next<float>(in);
    const auto state = next<float>(in), dy = next<float>(in), dafter = next<float>(in);
    std::vector<float> y(r.size()), after(state.size()), dr(y), dk(y), dv(y), dw(y), du(b * h * n), dstate(after);
    wkv6_forward_f32(b, t, h, n, 2, r.data(), k.data(), v.data(), w.data(), u.data(), state.data(), y.data(), after.data());
    wkv6_backward_f32(b, t, h, n, 2, r.data(), k.data(), v.data(), w.data(), u.data(), state.data(), dy.data(),
                      dafter.data(), dr.data(), dk.data(), dv.data(), dw.data(), du.data(), dstate.data());
    for (const auto& part : {y, after, dr, dk, dv, dw, dstate}) put(out, part);
#elif defined(ATTENTION)
    const Size t = sizes[0], h = sizes[1], n = sizes[2], s = sizes[3];
    const auto q = next<float>(in);
    const auto keys = next<bfloat16>(in), values = next<bfloat16>(in);
    std::vector<float> highest(t * h, -INFINITY), weight(t * h), weighted(t * h * n);
    attend_bfloat16(t, h, n, q.data(), keys.data(), values.data(), n, h * n, n, h * n, nullptr, s, t - s, 2,
                    highest.data(), weight.data(), weighted.data());
    for (Size i = 0; i < t * h * n; ++i) weighted[i] /= weight[i / n];
    put(out, weighted);
#elif defined(GOLD)
    const Size s = sizes[0], d = sizes[1], rank = sizes[2];
    const auto e = next<float>(in), before = next<float>(in), mu = next<float>(in), a = next<float>(in), b = next<float>(in);
    std::vector<float> weights(e.size()), values(e.size()), keys(e.size());
    mix_float32(e.data(), before.data(), s, d, mu.data(), mu.data(), mu.data(), a.data(), b.data(), rank, a.data(),
                b.data(), rank, mu.data(), mu.data(), 1e-5, 2, weights.data(), values.data());
    keys_float32(e.data(), before.data(), weights.data(), nullptr, s, d, a.data(), b.data(), rank, mu.data(), mu.data(),
                 1e-5, 2, keys.data());
    for (const auto& part : {weights, values, keys}) put(out, part);
#else
    const Size rows = sizes[0], count = sizes[1], width = sizes[2];
    const auto x = next<float>(in), w = next<float>(in);
    const auto codes = next<std::int8_t>(in);
    const auto scales = next<float>(in);
    std::vector<float> y(rows * count);
    for (const auto& matrix : {Matrix<float>{w.data(), nullptr, nullptr}, {nullptr, codes.data(), scales.data()}}) {
        linear_float32(&matrix, rows, count, width, 2, x.data(), y.data());
        put(out, y);
    }
#endif
}
