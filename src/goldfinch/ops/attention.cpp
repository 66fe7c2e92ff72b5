// Attention of a few queries on one block of keys and values: called through ctypes by attention.py.

#include "ops/attention.h"

#include "cpu/threads.h"

namespace {

template <typename W>
void attend(const Queries& queries, const Block<W>& block, int threads, const Running& running) {
    const Size pairs = queries.count * queries.heads, each = pairs * (2 + queries.size + TILE);
    Team team(threads);
    std::vector<float> memory(each * threads);
    const auto part = [&](int member) {
        float* at = memory.data() + each * member;
        return Running{at, at + pairs, at + 2 * pairs};
    };
    team.run([&](int me) {
        const Running mine = part(me);
        clear(queries, mine);
        float* scores = mine.weighted + pairs * queries.size;
        const Range keys = share(team, me, block.count, TILE);
        for (Size first = keys.first; first < keys.last; first += TILE)
            attend_tile(queries, block, first, std::min(first + TILE, keys.last), scores, mine);
        team.barrier();
        if (me == 0)
            for (int member = 0; member < team.size(); ++member) add(queries, part(member), running);
    });
}

}  // namespace

#define INTERFACE(W, SUFFIX)                                                                                         \
    void attend_##SUFFIX(Size count, Size heads, Size size, const float* q, const void* keys, const void* values,    \
                         Size key_head, Size key_row, Size value_head, Size value_row, const Size* rows, Size number, \
                         Size position, int threads, float* highest, float* weight, float* weighted) {               \
        const Block<W> block{(const W*)keys, (const W*)values, key_head, key_row, value_head, value_row,             \
                             rows,           number,           position};                                            \
        attend({count, heads, size, q}, block, threads, {highest, weight, weighted});                                \
    }

extern "C" {
INTERFACE(float, float32)
INTERFACE(bfloat16, bfloat16)
}
