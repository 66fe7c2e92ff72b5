// WKV6 in C++: the recurrence and its gradient, a head per task, the state of a head in the nearest cache.
//
//   y[t] = r[t] (S[t-1] + diag(u) k[t]^T v[t]);   S[t] = diag(w[t]) S[t-1] + k[t]^T v[t]
//
// Called through ctypes by cpu.py. Sequences are (B, T, H, N), states (B, H, N, N) as key x value, contiguous; N is a
// multiple of 64 bytes.

#include "vector.h"

namespace {

constexpr int MAX_VECTORS = 32;             // per row: N up to 512 floats or 256 doubles
constexpr std::int64_t BETWEEN_STATES = 16;  // tokens between the states that the backward pass keeps
constexpr std::int64_t AHEAD = 4;            // tokens whose rows are fetched early

// Rows of one head are all heads apart, too far for the hardware prefetcher.
template <typename T>
INLINE void prefetch(const T* from, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += Vector<T>::lanes) __builtin_prefetch(from + i);
}

struct Shape {
    std::int64_t batch, length, heads, size;
    // Each head's values are split into this many parts: more tasks if there are fewer heads than processors.
    std::int64_t parts;

    std::int64_t tasks() const { return batch * heads * parts; }
    std::int64_t row(std::int64_t b, std::int64_t t, std::int64_t h) const { return ((b * length + t) * heads + h) * size; }
};

// One part of one head: its place, and which values (columns of S) it is for.
struct Task {
    std::int64_t batch, head, part, first, last;

    Task(const Shape& shape, std::int64_t index, std::int64_t unit)
        : batch(index / shape.parts / shape.heads), head(index / shape.parts % shape.heads), part(index % shape.parts) {
        const std::int64_t units = shape.size / unit;
        first = part * units / shape.parts * unit;
        last = (part + 1) * units / shape.parts * unit;
    }
};

template <typename T>
struct Forward {
    Shape shape;
    bool from_the_end;  // the last token first
    const T *r, *k, *v, *w, *u, *state;
    T *y, *after;
};

// M: vectors per row of the part; 0 if unknown at compile time.
template <typename T, int M>
INLINE void forward(const Forward<T>& in, const Task& task) {
    using V = Vector<T>;
    const Shape& shape = in.shape;
    const std::int64_t size = shape.size;
    const int vectors = M ? M : (task.last - task.first) / V::lanes;
    std::vector<typename V::type> memory(size * vectors);
    typename V::type* s = memory.data();
    const std::int64_t place = (task.batch * shape.heads + task.head) * size * size + task.first;
    for (std::int64_t i = 0; i < size; ++i)
        for (int j = 0; j < vectors; ++j) s[i * vectors + j] = V::load(in.state + place + i * size + j * V::lanes);

    for (std::int64_t step = 0; step < shape.length; ++step) {
        const std::int64_t t = in.from_the_end ? shape.length - 1 - step : step;
        const std::int64_t row = shape.row(task.batch, t, task.head);
        const T *r = in.r + row, *k = in.k + row, *w = in.w + row;
        if (step + AHEAD < shape.length) {
            const std::int64_t later = shape.row(task.batch, in.from_the_end ? t - AHEAD : t + AHEAD, task.head);
            for (const T* from : {in.r, in.k, in.w}) prefetch(from + later, size);
            prefetch(in.v + later + task.first, task.last - task.first);
            prefetch(in.y + later + task.first, task.last - task.first);
        }
        typename V::type v[M ? M : MAX_VECTORS], y[M ? M : MAX_VECTORS];
        T bonus = 0;
        if (in.u)
            for (std::int64_t i = 0; i < size; ++i) bonus += r[i] * in.u[task.head * size + i] * k[i];
        for (int j = 0; j < vectors; ++j) {
            v[j] = V::load(in.v + row + task.first + j * V::lanes);
            y[j] = bonus * v[j];
        }
        for (std::int64_t i = 0; i < size; ++i) {
            const T read = r[i], keep = w[i], write = k[i];
            for (int j = 0; j < vectors; ++j) {
                const typename V::type before = s[i * vectors + j];
                y[j] += read * before;
                s[i * vectors + j] = keep * before + write * v[j];
            }
        }
        for (int j = 0; j < vectors; ++j) V::store(in.y + row + task.first + j * V::lanes, y[j]);
    }
    for (std::int64_t i = 0; i < size; ++i)
        for (int j = 0; j < vectors; ++j) V::store(in.after + place + i * size + j * V::lanes, s[i * vectors + j]);
}

template <typename T>
struct Backward {
    Shape shape;
    const T *r, *k, *v, *w, *u, *state, *dy, *dafter;
    // dr, dk, dw: (parts, B, T, H, N), to be added up; du: (parts, B, H, N), likewise.
    T *dr, *dk, *dw, *du;
};

// Gradients of r, k, w and u. Those of v and of the state are the recurrence itself, run from the end with r and k
// exchanged and dy for v: dv[t] = k[t] (G[t] + diag(u) r[t]^T dy[t]), G[t-1] = diag(w[t]) G[t] + r[t]^T dy[t].
// S and G are held as value x key here, so that all sums run along vectors.
template <typename T, int M>
INLINE void backward(const Backward<T>& in, const Task& task) {
    using V = Vector<T>;
    using X = typename V::type;
    constexpr int MAX = M ? M : MAX_VECTORS;
    const Shape& shape = in.shape;
    const std::int64_t size = shape.size, values = task.last - task.first, length = shape.length;
    const int vectors = M ? M : size / V::lanes;
    const std::int64_t head = task.batch * shape.heads + task.head, entries = values * vectors;
    const std::int64_t pieces = (length + BETWEEN_STATES - 1) / BETWEEN_STATES;
    std::vector<X> kept(pieces * entries), inside(BETWEEN_STATES * entries), gradient(entries);
    X* g = gradient.data();

    // S after token t from the one before it.
    const auto step = [&](const X* s, X* next, std::int64_t t) {
        const std::int64_t row = shape.row(task.batch, t, task.head);
        if (t + AHEAD < length) {
            const std::int64_t later = shape.row(task.batch, t + AHEAD, task.head);
            for (const T* from : {in.w, in.k}) prefetch(from + later, size);
            prefetch(in.v + later + task.first, values);
        }
        X w[MAX], k[MAX];
        for (int i = 0; i < vectors; ++i) {
            w[i] = V::load(in.w + row + i * V::lanes);
            k[i] = V::load(in.k + row + i * V::lanes);
        }
        for (std::int64_t j = 0; j < values; ++j) {
            const T v = in.v[row + task.first + j];
            for (int i = 0; i < vectors; ++i) next[j * vectors + i] = w[i] * s[j * vectors + i] + v * k[i];
        }
    };

    // The state before every piece of BETWEEN_STATES tokens.
    for (std::int64_t j = 0; j < values; ++j)
        for (std::int64_t i = 0; i < size; ++i) {
            const std::int64_t entry = (head * size + i) * size + task.first + j;
            kept[j * vectors + i / V::lanes][i % V::lanes] = in.state[entry];
            g[j * vectors + i / V::lanes][i % V::lanes] = in.dafter[entry];
        }
    for (std::int64_t piece = 1; piece < pieces; ++piece) {
        X* s = kept.data() + piece * entries;
        const std::int64_t start = (piece - 1) * BETWEEN_STATES;
        step(s - entries, s, start);
        for (std::int64_t t = start + 1; t < start + BETWEEN_STATES; ++t) step(s, s, t);
    }

    X du[MAX] = {};
    for (std::int64_t piece = pieces - 1; piece >= 0; --piece) {
        const std::int64_t start = piece * BETWEEN_STATES, stop = std::min(start + BETWEEN_STATES, length);
        std::copy_n(kept.data() + piece * entries, entries, inside.data());
        for (std::int64_t t = start; t < stop - 1; ++t) {
            X* s = inside.data() + (t - start) * entries;
            step(s, s + entries, t);
        }
        for (std::int64_t t = stop - 1; t >= start; --t) {
            const X* s = inside.data() + (t - start) * entries;
            const std::int64_t row = shape.row(task.batch, t, task.head);
            const std::int64_t target = task.part * shape.batch * length * shape.heads * size + row;
            X r[MAX], w[MAX], dr[MAX], dk[MAX], dw[MAX];
            if (t >= AHEAD) {
                const std::int64_t later = shape.row(task.batch, t - AHEAD, task.head), place = target - row + later;
                prefetch(in.r + later, size);
                prefetch(in.dy + later + task.first, values);
                for (const T* to : {in.dr, in.dk, in.dw}) prefetch(to + place, size);
            }
            T seen = 0;
            for (int i = 0; i < vectors; ++i) {
                r[i] = V::load(in.r + row + i * V::lanes);
                w[i] = V::load(in.w + row + i * V::lanes);
                dr[i] = dk[i] = dw[i] = X{};
            }
            for (std::int64_t j = 0; j < values; ++j) {
                const T dy = in.dy[row + task.first + j], v = in.v[row + task.first + j];
                for (int i = 0; i < vectors; ++i) {
                    const X old = g[j * vectors + i], before = s[j * vectors + i];
                    dr[i] += dy * before;
                    dk[i] += v * old;
                    dw[i] += old * before;
                    g[j * vectors + i] = w[i] * old + dy * r[i];
                }
                seen += dy * v;
            }
            for (int i = 0; i < vectors; ++i) {
                if (in.u) {
                    const X u = V::load(in.u + task.head * size + i * V::lanes);
                    const X k = V::load(in.k + row + i * V::lanes);
                    dr[i] += seen * u * k;
                    dk[i] += seen * u * r[i];
                    du[i] += seen * r[i] * k;
                }
                V::store(in.dr + target + i * V::lanes, dr[i]);
                V::store(in.dk + target + i * V::lanes, dk[i]);
                V::store(in.dw + target + i * V::lanes, dw[i]);
            }
        }
    }
    if (in.u)
        for (int i = 0; i < vectors; ++i)
            V::store(in.du + (task.part * shape.batch * shape.heads + head) * size + i * V::lanes, du[i]);
}

// Four vectors a row is the usual case: 64 floats.
void forward_task(const Forward<float>& in, std::int64_t index) {
    const Task task(in.shape, index, Vector<float>::lanes);
    if (task.last - task.first == 4 * Vector<float>::lanes)
        forward<float, 4>(in, task);
    else
        forward<float, 0>(in, task);
}
void forward_task(const Forward<double>& in, std::int64_t index) {
    forward<double, 0>(in, Task(in.shape, index, Vector<double>::lanes));
}
void backward_task(const Backward<float>& in, std::int64_t index) {
    const Task task(in.shape, index, 1);
    if (in.shape.size == 4 * Vector<float>::lanes)
        backward<float, 4>(in, task);
    else
        backward<float, 0>(in, task);
}
void backward_task(const Backward<double>& in, std::int64_t index) {
    backward<double, 0>(in, Task(in.shape, index, 1));
}

}  // namespace

#define INTERFACE(T, SUFFIX)                                                                                           \
    void wkv6_forward_##SUFFIX(std::int64_t batch, std::int64_t length, std::int64_t heads, std::int64_t size,         \
                               std::int64_t parts, int threads, const T* r, const T* k, const T* v, const T* w,        \
                               const T* u, const T* state, T* y, T* after) {                                           \
        const Forward<T> in{{batch, length, heads, size, parts}, false, r, k, v, w, u, state, y, after};               \
        run(in.shape.tasks(), threads, [&](std::int64_t task) { forward_task(in, task); });                            \
    }                                                                                                                  \
    void wkv6_backward_##SUFFIX(std::int64_t batch, std::int64_t length, std::int64_t heads, std::int64_t size,        \
                                std::int64_t parts, int threads, const T* r, const T* k, const T* v, const T* w,       \
                                const T* u, const T* state, const T* dy, const T* dafter, T* dr, T* dk, T* dv, T* dw,  \
                                T* du, T* dstate) {                                                                    \
        const Shape shape{batch, length, heads, size, parts};                                                          \
        const Forward<T> values{shape, true, k, r, dy, w, u, dafter, dv, dstate};                                      \
        const Backward<T> others{shape, r, k, v, w, u, state, dy, dafter, dr, dk, dw, du};                             \
        run(shape.tasks(), threads, [&](std::int64_t task) {                                                           \
            forward_task(values, task);                                                                                \
            backward_task(others, task);                                                                               \
        });                                                                                                            \
    }

extern "C" {
INTERFACE(float, f32)
INTERFACE(double, f64)
}
