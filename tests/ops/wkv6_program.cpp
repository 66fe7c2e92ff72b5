// Both passes of cpu.cpp, included by the command line, at odd sizes: something for sanitizers to look at.

template <typename T>
void check(std::int64_t batch, std::int64_t length, std::int64_t heads, std::int64_t size, int threads) {
    const auto filled = [](std::int64_t count) { return std::vector<T>(count, T(0.5)); };
    const std::int64_t n = batch * length * heads * size, s = batch * heads * size * size;
    const auto r = filled(n), k = filled(n), v = filled(n), w = filled(n), dy = filled(n), state = filled(s);
    const auto u = filled(heads * size);
    const Shape shape{batch, length, heads, size};
    for (const T* bonus : {u.data(), static_cast<const T*>(nullptr)}) {
        auto y = filled(n), dv = filled(n), after = filled(s), dstate = filled(s);
        auto dr = filled(n), dk = filled(n), dw = filled(n), du = filled(batch * heads * size);
        const Forward<T> forward{shape,    false, r.data(),     k.data(), v.data(),    w.data(),
                                 bonus, state.data(), y.data(), after.data()};
        const Forward<T> values{shape,    true, k.data(),     r.data(),  dy.data(),    w.data(),
                                bonus, after.data(), dv.data(), dstate.data()};
        const Backward<T> others{shape,     r.data(),     k.data(),  v.data(),  w.data(),  bonus, state.data(),
                                 dy.data(), after.data(), dr.data(), dk.data(), dw.data(), du.data()};
        run_forward(forward, threads);
        run_forward(values, threads);
        run_backward(others, threads);
    }
}

int main() {
    check<float>(2, 1, 3, 64, 1);
    check<float>(1, 35, 1, 64, 3);
    check<float>(1, 16, 2, 48, 2);
    check<double>(1, 33, 2, 64, 5);
    check<double>(2, 7, 1, 8, 1);
}
