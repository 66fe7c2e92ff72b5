// WKV6 in C++: the recurrence and its gradient, a slice of a head's state per task, held in the nearest cache.
//
//   y[t] = r[t] (S[t-1] + diag(u) k[t]^T v[t]);   S[t] = diag(w[t]) S[t-1] + k[t]^T v[t]
//
// Called through ctypes by cpu.py. Sequences are (B, T, H, N), states (B, H, N, N) as key x value, contiguous; N is a
// multiple of the width of a vector.

#include "cpu/threads.h"
#include "cpu/vector.h"

namespace {

// Vectors of a slice: as many as stay in registers next to what they are multiplied by.
constexpr int VALUE_VECTORS = 4;                         // forward: v and y
constexpr int KEY_VECTORS = REGISTERS >= 32 ? 4 : 2;     // backward: r, w, dr, dk and dw
constexpr std::int64_t BETWEEN_STATES = 16;              // tokens between the states that the backward pass keeps
constexpr std::int64_t AHEAD = 4;                        // tokens whose rows are fetched early

// Rows of one head are all heads apart, too far for the hardware prefetcher.
template <typename T>
INLINE void prefetch(const T* from, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(from + i);
}

struct Shape {
    std::int64_t batch, length, heads, size;

    std::int64_t row(std::int64_t b, std::int64_t t, std::int64_t h) const { return ((b * length + t) * heads + h) * size; }
};

// A slice of a head: `width` values or keys from `first` on. Nothing of one slice depends on another.
struct Slice {
    std::int64_t batch, head, first, width;
};

// Cuts all heads into slices of at most `vectors` vectors, fewer if there would be less slices than threads.
template <typename T>
struct Slices {
    Slices(const Shape& shape, int vectors, int threads) : shape(shape), vectors(vectors) {
        while (this->vectors > 1 && count() < threads) this->vectors /= 2;
    }

    std::int64_t width() const { return vectors * Vector<T>::lanes; }
    std::int64_t per_head() const { return (shape.size + width() - 1) / width(); }
    std::int64_t count() const { return shape.batch * shape.heads * per_head(); }

    Slice operator[](std::int64_t index) const {
        const std::int64_t head = index / per_head(), first = index % per_head() * width();
        return {head / shape.heads, head % shape.heads, first, std::min(width(), shape.size - first)};
    }

    Shape shape;
    int vectors;
};

// work(std::integral_constant<int, vectors of the slice>): loops over a slice are unrolled.
template <typename T, int MAX, typename Work>
INLINE void with_vectors(const Slice& slice, const Work& work) {
    const std::int64_t vectors = slice.width / Vector<T>::lanes;
    if (vectors == 1) work(std::integral_constant<int, 1>());
    if (vectors == 2) work(std::integral_constant<int, 2>());
    if constexpr (MAX > 2) {
        if (vectors == 3) work(std::integral_constant<int, 3>());
        if (vectors == 4) work(std::integral_constant<int, 4>());
    }
}

template <typename T>
struct Forward {
    Shape shape;
    bool from_the_end;  // the last token first
    const T *r, *k, *v, *w, *u, *state;
    T *y, *after;
};

// The slice's values: columns of S.
template <int VECTORS, typename T>
void forward(const Forward<T>& in, const Slice& slice) {
    using V = Vector<T>;
    using X = typename V::type;
    const Shape& shape = in.shape;
    const std::int64_t size = shape.size;
    std::vector<X> memory(size * VECTORS);
    X* s = memory.data();
    const std::int64_t place = (slice.batch * shape.heads + slice.head) * size * size + slice.first;
    for (std::int64_t i = 0; i < size; ++i)
        for (int j = 0; j < VECTORS; ++j) s[i * VECTORS + j] = V::load(in.state + place + i * size + j * V::lanes);

    for (std::int64_t step = 0; step < shape.length; ++step) {
        const std::int64_t t = in.from_the_end ? shape.length - 1 - step : step;
        const std::int64_t row = shape.row(slice.batch, t, slice.head);
        const T *r = in.r + row, *k = in.k + row, *w = in.w + row;
        if (step + AHEAD < shape.length) {
            const std::int64_t later = shape.row(slice.batch, in.from_the_end ? t - AHEAD : t + AHEAD, slice.head);
            for (const T* from : {in.r, in.k, in.w}) prefetch(from + later, size);
            prefetch(in.v + later + slice.first, slice.width);
            prefetch(in.y + later + slice.first, slice.width);
        }
        X v[VECTORS], y[VECTORS];
        T bonus = 0;
        if (in.u)
            for (std::int64_t i = 0; i < size; ++i) bonus += r[i] * in.u[slice.head * size + i] * k[i];
        for (int j = 0; j < VECTORS; ++j) {
            v[j] = V::load(in.v + row + slice.first + j * V::lanes);
            y[j] = bonus * v[j];
        }
        for (std::int64_t i = 0; i < size; ++i) {
            const T read = r[i], keep = w[i], write = k[i];
            for (int j = 0; j < VECTORS; ++j) {
                const X before = s[i * VECTORS + j];
                y[j] += read * before;
                s[i * VECTORS + j] = keep * before + write * v[j];
            }
        }
        for (int j = 0; j < VECTORS; ++j) V::store(in.y + row + slice.first + j * V::lanes, y[j]);
    }
    for (std::int64_t i = 0; i < size; ++i)
        for (int j = 0; j < VECTORS; ++j) V::store(in.after + place + i * size + j * V::lanes, s[i * VECTORS + j]);
}

template <typename T>
struct Backward {
    Shape shape;
    const T *r, *k, *v, *w, *u, *state, *dy, *dafter;
    T *dr, *dk, *dw, *du;  // du: (B, H, N), to be added up
};

// Gradients of r, k, w and u for the slice's keys: rows of S. Those of v and of the state are the recurrence itself, run
// from the end with r and k exchanged and dy for v: dv[t] = k[t] (G[t] + diag(u) r[t]^T dy[t]),
// G[t-1] = diag(w[t]) G[t] + r[t]^T dy[t]. S and G are held as value x key here, so that all sums run along vectors.
template <int VECTORS, typename T>
void backward(const Backward<T>& in, const Slice& slice) {
    using V = Vector<T>;
    using X = typename V::type;
    const Shape& shape = in.shape;
    const std::int64_t size = shape.size, length = shape.length, entries = size * VECTORS;
    const std::int64_t head = slice.batch * shape.heads + slice.head;
    const std::int64_t pieces = (length + BETWEEN_STATES - 1) / BETWEEN_STATES;
    std::vector<X> kept(pieces * entries), inside(BETWEEN_STATES * entries), gradient(entries);
    X* g = gradient.data();
    const auto load = [](const T* from, X* to) {
        for (int i = 0; i < VECTORS; ++i) to[i] = V::load(from + i * V::lanes);
    };

    // S after token t from the one before it.
    const auto step = [&](const X* s, X* next, std::int64_t t) {
        const std::int64_t row = shape.row(slice.batch, t, slice.head);
        if (t + AHEAD < length) {
            const std::int64_t later = shape.row(slice.batch, t + AHEAD, slice.head);
            for (const T* from : {in.w, in.k}) prefetch(from + later + slice.first, slice.width);
            prefetch(in.v + later, size);
        }
        X w[VECTORS], k[VECTORS];
        load(in.w + row + slice.first, w);
        load(in.k + row + slice.first, k);
        for (std::int64_t j = 0; j < size; ++j) {
            const T v = in.v[row + j];
            for (int i = 0; i < VECTORS; ++i) next[j * VECTORS + i] = w[i] * s[j * VECTORS + i] + v * k[i];
        }
    };

    // The state before every piece of BETWEEN_STATES tokens.
    for (std::int64_t i = 0; i < slice.width; ++i)
        for (std::int64_t j = 0; j < size; ++j) {
            const std::int64_t entry = (head * size + slice.first + i) * size + j;
            kept[j * VECTORS + i / V::lanes][i % V::lanes] = in.state[entry];
            g[j * VECTORS + i / V::lanes][i % V::lanes] = in.dafter[entry];
        }
    for (std::int64_t piece = 1; piece < pieces; ++piece) {
        X* s = kept.data() + piece * entries;
        const std::int64_t start = (piece - 1) * BETWEEN_STATES;
        step(s - entries, s, start);
        for (std::int64_t t = start + 1; t < start + BETWEEN_STATES; ++t) step(s, s, t);
    }

    X du[VECTORS] = {};
    for (std::int64_t piece = pieces - 1; piece >= 0; --piece) {
        const std::int64_t start = piece * BETWEEN_STATES, stop = std::min(start + BETWEEN_STATES, length);
        std::copy_n(kept.data() + piece * entries, entries, inside.data());
        for (std::int64_t t = start; t < stop - 1; ++t) {
            X* s = inside.data() + (t - start) * entries;
            step(s, s + entries, t);
        }
        for (std::int64_t t = stop - 1; t >= start; --t) {
            const X* s = inside.data() + (t - start) * entries;
            const std::int64_t row = shape.row(slice.batch, t, slice.head), place = row + slice.first;
            if (t >= AHEAD) {
                const std::int64_t later = shape.row(slice.batch, t - AHEAD, slice.head);
                prefetch(in.dy + later, size);
                for (const T* rows : {in.r, (const T*)in.dr, (const T*)in.dk, (const T*)in.dw})
                    prefetch(rows + later + slice.first, slice.width);
            }
            X r[VECTORS], w[VECTORS], dr[VECTORS] = {}, dk[VECTORS] = {}, dw[VECTORS] = {};
            load(in.r + place, r);
            load(in.w + place, w);
            T seen = 0;
            if (in.u)
                for (std::int64_t j = 0; j < size; ++j) seen += in.dy[row + j] * in.v[row + j];
            for (std::int64_t j = 0; j < size; ++j) {
                const T dy = in.dy[row + j], v = in.v[row + j];
                for (int i = 0; i < VECTORS; ++i) {
                    const X old = g[j * VECTORS + i], before = s[j * VECTORS + i];
                    dr[i] += dy * before;
                    dk[i] += v * old;
                    dw[i] += old * before;
                    g[j * VECTORS + i] = w[i] * old + dy * r[i];
                }
            }
            for (int i = 0; i < VECTORS; ++i) {
                if (in.u) {
                    const X u = V::load(in.u + slice.head * size + slice.first + i * V::lanes);
                    const X k = V::load(in.k + place + i * V::lanes);
                    dr[i] += seen * u * k;
                    dk[i] += seen * u * r[i];
                    du[i] += seen * r[i] * k;
                }
                V::store(in.dr + place + i * V::lanes, dr[i]);
                V::store(in.dk + place + i * V::lanes, dk[i]);
                V::store(in.dw + place + i * V::lanes, dw[i]);
            }
        }
    }
    if (in.u)
        for (int i = 0; i < VECTORS; ++i) V::store(in.du + head * size + slice.first + i * V::lanes, du[i]);
}

template <typename T>
void run_forward(const Forward<T>& in, int threads) {
    const Slices<T> slices(in.shape, VALUE_VECTORS, threads);
    run(slices.count(), threads, [&](std::int64_t task) {
        const Slice slice = slices[task];
        with_vectors<T, VALUE_VECTORS>(slice, [&](auto vectors) { forward<vectors.value>(in, slice); });
    });
}

template <typename T>
void run_backward(const Backward<T>& in, int threads) {
    const Slices<T> slices(in.shape, KEY_VECTORS, threads);
    run(slices.count(), threads, [&](std::int64_t task) {
        const Slice slice = slices[task];
        with_vectors<T, KEY_VECTORS>(slice, [&](auto vectors) { backward<vectors.value>(in, slice); });
    });
}

}  // namespace

#define INTERFACE(T, SUFFIX)                                                                                           \
    void wkv6_forward_##SUFFIX(std::int64_t batch, std::int64_t length, std::int64_t heads, std::int64_t size,         \
                               int threads, const T* r, const T* k, const T* v, const T* w, const T* u,                \
                               const T* state, T* y, T* after) {                                                       \
        run_forward<T>({{batch, length, heads, size}, false, r, k, v, w, u, state, y, after}, threads);                \
    }                                                                                                                  \
    void wkv6_backward_##SUFFIX(std::int64_t batch, std::int64_t length, std::int64_t heads, std::int64_t size,        \
                                int threads, const T* r, const T* k, const T* v, const T* w, const T* u,               \
                                const T* state, const T* dy, const T* dafter, T* dr, T* dk, T* dv, T* dw, T* du,       \
                                T* dstate) {                                                                           \
        const Shape shape{batch, length, heads, size};                                                                 \
        run_forward<T>({shape, true, k, r, dy, w, u, dafter, dv, dstate}, threads);                                    \
        run_backward<T>({shape, r, k, v, w, u, state, dy, dafter, dr, dk, dw, du}, threads);                           \
    }

extern "C" {
INTERFACE(float, f32)
INTERFACE(double, f64)
}
