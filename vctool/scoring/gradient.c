/* What MeanMaxSim in training does beside matrix products, on a CPU: largest similarities with their places, and the gradient that goes
 * back to those places alone. The caller is vctool/models/tiled_meanmaxsim.py, which has checked shapes and types.
 *
 * Plain C that compilers vectorise, in a version for each instruction set where the loader can choose among them. Every sum has one
 * order, so gradients have the same bits each time and with any number of threads: callers give each thread rows of its own.
 *
 * Shape letters: M query tokens end to end, C clips, T tokens of a clip, D width, B queries. place[C][M], share[C][B], owner[M].
 */

#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#if defined(__linux__) && defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(WITHOUT_VERSIONS)
#define VERSIONS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VERSIONS
#endif

enum { COLUMNS = 256, CLIPS = 32, ROWS = 256 }; /* what is worked on at once: in the first-level cache, the second-level cache */

/* best[c][m], place[c][m] of clips first to last - 1: the largest of similarity[t][c][m] over t, and the first t that has it. One that is
 * not a number wins. */
EXPORT VERSIONS void vctool_fold(const float *similarity, int64_t tokens, int64_t clips, int64_t columns, int64_t first, int64_t last,
                                 float *best, uint8_t *place)
{
    for (int64_t c = first; c < last; c++)
        for (int64_t start = 0; start < columns; start += COLUMNS) {
            const int64_t count = columns - start < COLUMNS ? columns - start : COLUMNS;
            float *restrict top = best + c * columns + start;
            int32_t at[COLUMNS];
            memset(at, 0, sizeof at);
            memcpy(top, similarity + c * columns + start, count * sizeof(float));
            for (int64_t t = 1; t < tokens; t++) {
                const float *restrict now = similarity + (t * clips + c) * columns + start;
                for (int64_t j = 0; j < count; j++) {
                    const int better = (now[j] > top[j]) | (now[j] != now[j]);
                    at[j] = better ? (int32_t)t : at[j];
                    top[j] = better ? now[j] : top[j];
                }
            }
            for (int64_t j = 0; j < count; j++)
                place[c * columns + start + j] = (uint8_t)at[j];
        }
}

/* out[m] += sum over clips of share[c][owner[m]] * token[c][place[c][m]], for rows first to last - 1. */
EXPORT VERSIONS void vctool_chosen_tokens(const float *token, int64_t tokens, int64_t dim, const uint8_t *place, int64_t columns,
                                          const float *share, int64_t queries, const int64_t *owner, int64_t clips, int64_t first,
                                          int64_t last, float *out)
{
    for (int64_t begin = 0; begin < clips; begin += CLIPS) {
        const int64_t end = clips - begin < CLIPS ? clips : begin + CLIPS;
        for (int64_t m = first; m < last; m++) {
            float *restrict to = out + m * dim;
            int64_t c = begin;
            for (; c + 4 <= end; c += 4) { /* four at a time: the sum is read and written a quarter as often */
                const float *restrict a = token + (c * tokens + place[c * columns + m]) * dim;
                const float *restrict b = token + ((c + 1) * tokens + place[(c + 1) * columns + m]) * dim;
                const float *restrict g = token + ((c + 2) * tokens + place[(c + 2) * columns + m]) * dim;
                const float *restrict h = token + ((c + 3) * tokens + place[(c + 3) * columns + m]) * dim;
                const float wa = share[c * queries + owner[m]], wb = share[(c + 1) * queries + owner[m]];
                const float wg = share[(c + 2) * queries + owner[m]], wh = share[(c + 3) * queries + owner[m]];
                for (int64_t d = 0; d < dim; d++)
                    to[d] += (wa * a[d] + wb * b[d]) + (wg * g[d] + wh * h[d]);
            }
            for (; c < end; c++) {
                const float *restrict a = token + (c * tokens + place[c * columns + m]) * dim;
                const float w = share[c * queries + owner[m]];
                for (int64_t d = 0; d < dim; d++)
                    to[d] += w * a[d];
            }
        }
    }
}

/* out[c][t] += sum over the query tokens m with place[c][m] = t of share[c][owner[m]] * query[m], for clips first to last - 1. */
EXPORT VERSIONS void vctool_choosing_queries(const float *query, int64_t columns, int64_t dim, const uint8_t *place, const float *share,
                                             int64_t queries, const int64_t *owner, int64_t tokens, int64_t first, int64_t last, float *out)
{
    for (int64_t begin = 0; begin < columns; begin += ROWS) {
        const int64_t end = columns - begin < ROWS ? columns : begin + ROWS;
        for (int64_t c = first; c < last; c++) {
            int32_t start[257] = {0}, order[ROWS]; /* the block's rows, those of one token together */
            for (int64_t m = begin; m < end; m++)
                start[place[c * columns + m] + 1]++;
            for (int64_t t = 0; t < tokens; t++)
                start[t + 1] += start[t];
            for (int64_t m = begin; m < end; m++)
                order[start[place[c * columns + m]]++] = (int32_t)(m - begin); /* start[t] ends where t's rows end */
            for (int64_t t = 0; t < tokens; t++) {
                float *restrict to = out + (c * tokens + t) * dim;
                int64_t i = t ? start[t - 1] : 0;
                for (; i + 4 <= start[t]; i += 4) { /* four at a time: the sum is read and written a quarter as often */
                    const int64_t m0 = begin + order[i], m1 = begin + order[i + 1], m2 = begin + order[i + 2], m3 = begin + order[i + 3];
                    const float *restrict q0 = query + m0 * dim, *restrict q1 = query + m1 * dim;
                    const float *restrict q2 = query + m2 * dim, *restrict q3 = query + m3 * dim;
                    const float w0 = share[c * queries + owner[m0]], w1 = share[c * queries + owner[m1]];
                    const float w2 = share[c * queries + owner[m2]], w3 = share[c * queries + owner[m3]];
                    for (int64_t d = 0; d < dim; d++)
                        to[d] += (w0 * q0[d] + w1 * q1[d]) + (w2 * q2[d] + w3 * q3[d]);
                }
                for (; i < start[t]; i++) {
                    const float *restrict q0 = query + (begin + order[i]) * dim;
                    const float w0 = share[c * queries + owner[begin + order[i]]];
                    for (int64_t d = 0; d < dim; d++)
                        to[d] += w0 * q0[d];
                }
            }
        }
    }
}
