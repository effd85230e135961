/* MeanMaxSim in C: products, maxima and means in one pass over the tokens, for the CPUs that can do it fast.
 *
 * 32 rows of tokens (16 where they become float32) are multiplied with two tiles of 16 query tokens, the 4 KiB of results
 * folded into the running maximum of each clip, and forgotten: no similarity ever leaves the first-level cache.
 *
 * What keeps a pair's score the same in any company: the products of int8 are summed exactly in 32 bits; those of
 * float32 and bfloat16 are summed in the order of the width, by instructions that treat every row and every column alike;
 * a maximum has no order; and the mean is summed in float64 over 16 lanes that belong to the query, not to the batch.
 * int8 gives the same bits by every instruction set. Contraction is off (-ffp-contract=off): where a fused
 * multiply-add is meant, it is written.
 *
 * int4 and compact tokens are packed: their codes become whole numbers of 8 bits in the first-level cache (levels of a
 * table, or -1 and 1), and are int8 from there on. A compact token is that plus a centre, which tokens of its clip
 * share: max(q . (centre + token)) is q . centre + max(q . token) over the tokens of one centre. The products with a
 * clip's centres are made first, like those with int4 tokens, and added to the maxima.
 *
 * The caller (kernels.py) has checked every shape and packs the query:
 *     query[tile][width / group][16][group], group = 4 int8, 2 int16, 2 bfloat16 or 1 float32; width a multiple of 64;
 * a tile of bfloat16 is two of these, upper and lower halves of float32.
 * One plain C function for each token type; no state; any number of threads.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ABI 2
#define ONE 0x1p-18f /* meanmaxsim.ONE: as near to 1 as this is 1 */

enum { KERNEL_AVX2 = 1, KERNEL_AVX512 = 2, KERNEL_AMX = 4 };
enum { INT8 = 0, FLOAT16 = 1, INT4 = 2, COMPACT = 3, TYPES = 4 }; /* of tokens */
enum { DONE = 0, NO_MEMORY = 1, NO_KERNEL = 2 };
enum { LANES = 16, BLOCK = 32, RUN = 128, CENTRES = 512 }; /* query tokens a tile; rows a block, clips and centres a run at most */

struct job {
    const uint8_t *tokens; /* [rows, row_bytes] */
    int64_t rows, dim, row_bytes;
    const float *scale;          /* [rows], NULL for float16 */
    const uint8_t *counted;      /* [rows], may be NULL: every row counts */
    const int64_t *offsets;      /* clip i owns rows offsets[i] to offsets[i + 1] */
    int64_t first, last;         /* the clips to score */
    const uint8_t *query;        /* packed tiles, 64-byte aligned */
    const int32_t *bias;         /* [tiles, 16]: -128 times the sum of a query token, for products of unsigned bytes */
    const float *weight;         /* [tiles, 16]: a query token's scale; 0 for padding */
    const int64_t *query_tiles;  /* [queries + 1]: query b owns tiles query_tiles[b] to query_tiles[b + 1] */
    const int64_t *query_counts; /* [queries]: its tokens */
    int64_t queries;
    float *scores; /* [queries, stride], written at columns first to last - 1 */
    int64_t stride;
    /* compact tokens only, else NULL */
    const uint8_t *centre;         /* [rows]: the row's centre, counted within its clip */
    const uint8_t *centres;        /* [all centres, bytes of an int4 token] */
    const float *centre_scale;     /* [all centres] */
    const int64_t *centre_offsets; /* clip i owns centres centre_offsets[i] to centre_offsets[i + 1] */
};

/* The rows of one block as the products want them. */
struct block {
    const uint8_t *rows;
    int64_t stride;  /* bytes from row to row */
    int64_t start;   /* the first row's number */
    int64_t padded;  /* width rounded up to a multiple of 64 */
    uint8_t *memory; /* a converted copy, where one is needed */
    const float *base; /* products of the query with the run's centres, [centres, columns]; NULL without centres */
    int count;
    const char *ahead; /* what the next pass over two tiles is to fetch of a block to come; NULL where tokens are read in order */
    int64_t each;      /* of it, 64-byte lines for each 64 columns of the products; folding fetches one for each row */
};

/* Rows begin to end - 1 of a block, all of one clip and one centre, all counted. */
struct segment {
    int clip, begin, end, centre;
};

struct kernel {
    int rows;      /* rows a block */
    int row_bytes; /* of a converted copy, for each element of the padded width */
    void (*begin)(void);
    void (*end)(void);
    uint32_t (*load)(const struct job *, struct block *);        /* returns a bit for each row that is not finite */
    uint32_t (*load_levels)(const struct job *, struct block *); /* of int4 tokens and centres; NULL where there are none */
    void (*product)(const struct job *, const struct block *, int64_t tile, int tiles, void *out);
    void (*fold)(const struct job *, const struct block *, const struct segment *, int segments, int64_t tile, int tiles,
                 const void *out, float *maxima, int64_t columns);
    float (*mean)(const float *maxima, const float *weight, int64_t tiles, int64_t count);
};

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static int infinite(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7f800000u) == 0x7f800000u;
}

/* The mean of a query's maxima: float64, lane by lane, then the lanes in a fixed tree. */
static float mean_of(const float *maxima, const float *weight, int64_t tiles, int64_t count)
{
    double sum[LANES] = {0};
    for (int64_t tile = 0; tile < tiles; tile++)
        for (int lane = 0; lane < LANES; lane++) {
            const float value = maxima[tile * LANES + lane] * weight[tile * LANES + lane];
            sum[lane] += __builtin_fabsf(value - 1.0f) <= ONE ? 1.0 : (double)value;
        }
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++)
            sum[lane] += sum[lane + half];
    return (float)(sum[0] / (double)count);
}

enum { EMPTY = 0, VALID = 1, BROKEN = 2 };

/* The row's centre, counted within the run that begins with clip `first`; -1 if its clip does not have it. */
static int centre_of(const struct job *job, int64_t first, int64_t clip, int64_t row)
{
    const int64_t *offsets = job->centre_offsets, centre = offsets[clip] + job->centre[row];
    return centre < offsets[clip + 1] ? (int)(centre - offsets[first]) : -1;
}

/* Splits a block's counted rows by clip and centre. `clip` is the clip of the first row at or before; moves on to the last row's. */
static int segments_of(const struct job *job, const struct block *block, int64_t first, int64_t *clip, uint32_t bad, uint8_t *state,
                       const uint8_t *bad_centre, struct segment *segments)
{
    int found = 0, row = 0;
    while (row < block->count) {
        while (job->offsets[*clip + 1] <= block->start + row)
            ++*clip;
        int end = (int)least(block->count, job->offsets[*clip + 1] - block->start);
        while (row < end) {
            while (row < end && job->counted && !job->counted[block->start + row])
                row++;
            int begin = row;
            while (row < end && (!job->counted || job->counted[block->start + row]))
                row++;
            if (begin == row)
                continue;
            uint8_t *now = &state[*clip - first];
            if (bad & (uint32_t)((1ull << row) - (1ull << begin)))
                *now = BROKEN;
            if (*now == EMPTY)
                *now = VALID;
            if (!job->centre) {
                segments[found++] = (struct segment){(int)(*clip - first), begin, row, 0};
                continue;
            }
            for (int next; begin < row; begin = next) {
                const int64_t at = block->start + begin;
                const int centre = centre_of(job, first, *clip, at);
                for (next = begin + 1; next < row && job->centre[block->start + next] == job->centre[at];)
                    next++;
                if (centre < 0 || bad_centre[centre])
                    *now = BROKEN;
                else
                    segments[found++] = (struct segment){(int)(*clip - first), begin, next, centre};
            }
        }
    }
    return found;
}

static void *aligned(uint8_t *memory) { return (void *)(((uintptr_t)memory + 63) & ~(uintptr_t)63); }

/* The last clip of a run that begins with clip `first`, plus one. */
static int64_t run_end(const struct job *job, int64_t first)
{
    int64_t last = least(first + RUN, job->last);
    if (job->centre)
        while (last > first + 1 && job->centre_offsets[last] - job->centre_offsets[first] > CENTRES)
            last--;
    return last;
}

/* The products of the query with the centres of clips first to last - 1, scaled; marks centres whose scale is not finite. */
static void centre_products(const struct kernel *kernel, const struct job *job, int64_t first, int64_t last, uint8_t *memory, void *out,
                            float *base, uint8_t *bad_centre)
{
    const int64_t tiles = job->query_tiles[job->queries], columns = tiles * LANES;
    const int64_t begin = job->centre_offsets[first], end = least(job->centre_offsets[last], begin + CENTRES + 256);
    struct job centres = *job;
    centres.tokens = job->centres;
    centres.scale = job->centre_scale;
    centres.rows = job->centre_offsets[last];
    centres.row_bytes = (job->dim + 1) / 2;
    for (int64_t row = begin; row < end; row += kernel->rows) {
        struct block block = {NULL, 0, row, (job->dim + 63) / 64 * 64, memory, NULL, (int)least(kernel->rows, end - row), NULL, 0};
        const uint32_t bad = kernel->load_levels(&centres, &block);
        for (int i = 0; i < block.count; i++)
            bad_centre[row - begin + i] = bad >> i & 1;
        for (int64_t tile = 0; tile < tiles; tile += 2) {
            const int some = (int)least(2, tiles - tile);
            kernel->product(&centres, &block, tile, some, out);
            for (int t = 0; t < some; t++)
                for (int i = 0; i < block.count; i++) {
                    float *to = base + (row - begin + i) * columns + (tile + t) * LANES;
                    for (int lane = 0; lane < LANES; lane++)
                        to[lane] = (float)((const int32_t *)out)[(t * BLOCK + i) * LANES + lane] * centres.scale[row + i];
                }
        }
    }
}

static int run_kernel(const struct kernel *kernel, const struct job *job)
{
    const int64_t tiles = job->query_tiles[job->queries], columns = tiles * LANES, padded = (job->dim + 63) / 64 * 64;
    const size_t copy_bytes = (size_t)(kernel->rows * kernel->row_bytes * padded);
    const size_t out_bytes = 2 * BLOCK * LANES * sizeof(float);
    const size_t maxima_bytes = (size_t)(RUN * columns) * sizeof(float);
    const size_t base_bytes = job->centre ? (size_t)((CENTRES + 256) * columns) * sizeof(float) : 0;
    uint8_t *memory = calloc(1, copy_bytes + out_bytes + maxima_bytes + base_bytes + 64);
    if (!memory)
        return NO_MEMORY;
    uint8_t *copy = aligned(memory), *out = copy + copy_bytes;
    float *maxima = (float *)(out + out_bytes), *base = (float *)(out + out_bytes + maxima_bytes);
    const int64_t passes = tiles > 2 ? (tiles + 1) / 2 : 1, lines = (BLOCK * padded / 64 + passes - 1) / passes; /* fetched in a pass */
    const int64_t each = lines > BLOCK ? (lines - BLOCK + padded / 64 - 1) / (padded / 64) : 0;
    struct segment segments[BLOCK];
    uint8_t state[RUN], bad_centre[CENTRES + 256];

    if (kernel->begin)
        kernel->begin();
    for (int64_t first = job->first, last; first < job->last; first = last) {
        last = run_end(job, first);
        for (int64_t i = 0; i < (last - first) * columns; i++)
            maxima[i] = -__builtin_inff();
        memset(state, EMPTY, sizeof state);
        if (job->centre)
            centre_products(kernel, job, first, last, copy, out, base, bad_centre);
        int64_t clip = first;
        const int64_t end = job->offsets[last];
        for (int64_t row = job->offsets[first]; row < end; row += kernel->rows) {
            struct block block = {NULL, 0, row, padded, copy, job->centre ? base : NULL, (int)least(kernel->rows, end - row), NULL, each};
            const uint32_t bad = kernel->load(job, &block);
            const int count = segments_of(job, &block, first, &clip, bad, state, bad_centre, segments);
            if (count == 0)
                continue;
            for (int64_t tile = 0; tile < tiles; tile += 2) {
                const int some = (int)least(2, tiles - tile);
                kernel->product(job, &block, tile, some, out);
                kernel->fold(job, &block, segments, count, tile, some, out, maxima, columns);
                if (block.ahead)
                    block.ahead += lines * 64;
            }
        }
        for (int64_t i = first; i < last; i++)
            for (int64_t b = 0; b < job->queries; b++) {
                const int64_t tile = job->query_tiles[b];
                const float *max = maxima + (i - first) * columns + tile * LANES;
                job->scores[b * job->stride + i] =
                    state[i - first] == VALID
                        ? kernel->mean(max, job->weight + tile * LANES, job->query_tiles[b + 1] - tile, job->query_counts[b])
                    : state[i - first] == EMPTY ? -__builtin_inff()
                                                : __builtin_nanf("");
            }
    }
    if (kernel->end)
        kernel->end();
    free(memory);
    return DONE;
}

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define AMX __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-int8,amx-bf16")))

static uint32_t bad_scales(const struct job *job, const struct block *block)
{
    uint32_t bad = 0;
    for (int row = 0; row < block->count; row++)
        bad |= (uint32_t)infinite(job->scale[block->start + row]) << row;
    return bad;
}

AVX512 static uint32_t bad_scales_avx512(const struct job *job, const struct block *block)
{
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    const float *scale = job->scale + block->start;
    uint32_t bad = 0;
    for (int row = 0; row < block->count; row += 16) {
        const __mmask16 there = (__mmask16)(block->count - row >= 16 ? 0xffff : (1u << (block->count - row)) - 1);
        const __m512i bits = _mm512_maskz_loadu_epi32(there, scale + row);
        bad |= (uint32_t)_mm512_cmpeq_epi32_mask(_mm512_and_si512(bits, exponent), exponent) << row;
    }
    return bad;
}

/* What the 16 codes of int4 tokens mean: precision/codes.py has the same table. */
static const int8_t LEVELS[16] = {-127, -96, -75, -58, -44, -31, -18, -6, 6, 18, 31, 44, 58, 75, 96, 127};

AVX2 static float mean_avx2(const float *maxima, const float *weight, int64_t tiles, int64_t count)
{
    return mean_of(maxima, weight, tiles, count);
}

/* mean_of, step by step in registers. */
AVX512 static float mean_avx512(const float *maxima, const float *weight, int64_t tiles, int64_t count)
{
    const __m512 one = _mm512_set1_ps(1.0f), near = _mm512_set1_ps(ONE);
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
    for (int64_t lane = 0; lane < tiles * LANES; lane += LANES) {
        const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(maxima + lane), _mm512_loadu_ps(weight + lane));
        const __mmask16 snapped = _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_sub_ps(value, one)), near, _CMP_LE_OQ);
        const __m512 kept = _mm512_mask_mov_ps(value, snapped, one);
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(kept)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(kept, 1)));
    }
    const __m512d eight = _mm512_add_pd(low, high);
    const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return (float)((_mm_cvtsd_f64(two) + _mm_cvtsd_f64(_mm_unpackhi_pd(two, two))) / (double)count);
}

/* ---- AVX2: int8 widened to int16 (exact), float16 to float32 ---- */

AVX2 static uint32_t load_int16(const struct job *job, struct block *block)
{
    int16_t *copy = (int16_t *)block->memory;
    for (int row = 0; row < block->count; row++, copy += block->padded) {
        const uint8_t *from = job->tokens + (block->start + row) * job->row_bytes;
        int64_t d = 0;
        for (; d + 16 <= job->dim; d += 16)
            _mm256_storeu_si256((__m256i *)(copy + d), _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(from + d))));
        for (; d < job->dim; d++)
            copy[d] = (int8_t)from[d];
    }
    block->rows = block->memory;
    block->stride = block->padded * 2;
    return bad_scales(job, block);
}

/* 32 levels that 16 bytes name, in order. */
AVX2 static __m256i levels_32(__m128i packed)
{
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)LEVELS));
    const __m256i wide = _mm256_cvtepu8_epi16(packed);
    const __m256i codes = _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi16(wide, 4)), _mm256_set1_epi8(15));
    return _mm256_shuffle_epi8(table, codes);
}

/* -1 or 1 for each of 32 bits, in order. */
AVX2 static __m256i signs_32(uint32_t bits)
{
    const __m256i which = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i each = _mm256_set1_epi64x((long long)0x8040201008040201ull);
    const __m256i own = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), which), each);
    const __m256i absent = _mm256_cmpeq_epi8(own, _mm256_setzero_si256());
    return _mm256_or_si256(absent, _mm256_set1_epi8(1));
}

/* Tokens of `bits` bits a coordinate as int16. The last piece of a row goes through a buffer: nothing behind it is read. */
AVX2 static inline __attribute__((always_inline)) uint32_t load_packed_int16(const struct job *job, struct block *block, const int bits)
{
    int16_t *copy = (int16_t *)block->memory;
    for (int row = 0; row < block->count; row++, copy += block->padded) {
        const uint8_t *from = job->tokens + (block->start + row) * job->row_bytes;
        for (int64_t d = 0; d < block->padded; d += 32, from += 4 * bits) {
            const int64_t left = job->row_bytes - d * bits / 8;
            uint8_t piece[16] = {0};
            if (left >= 4 * bits)
                memcpy(piece, from, 4 * (size_t)bits);
            else if (left > 0)
                memcpy(piece, from, (size_t)left);
            uint32_t word;
            memcpy(&word, piece, sizeof word);
            const __m256i codes = bits == 4 ? levels_32(_mm_loadu_si128((const __m128i *)piece)) : signs_32(word);
            _mm256_storeu_si256((__m256i *)(copy + d), _mm256_cvtepi8_epi16(_mm256_castsi256_si128(codes)));
            _mm256_storeu_si256((__m256i *)(copy + d + 16), _mm256_cvtepi8_epi16(_mm256_extracti128_si256(codes, 1)));
        }
    }
    block->rows = block->memory;
    block->stride = block->padded * 2;
    return bad_scales(job, block);
}

AVX2 static uint32_t load_levels_int16(const struct job *job, struct block *block) { return load_packed_int16(job, block, 4); }
AVX2 static uint32_t load_signs_int16(const struct job *job, struct block *block) { return load_packed_int16(job, block, 1); }

/* Four rows and one tile at a time: eight sums, and the two halves of the query, stay in registers. */
AVX2 static void product_int16(const struct job *job, const struct block *block, int64_t tile, int tiles, void *out)
{
    for (int t = 0; t < tiles; t++) {
        const uint8_t *query = job->query + (tile + t) * block->padded * 2 * LANES;
        for (int row = 0; row < block->count; row += 4) {
            const uint8_t *rows = block->rows + row * block->stride;
            __m256i sum[4][2];
            for (int r = 0; r < 4; r++)
                sum[r][0] = sum[r][1] = _mm256_setzero_si256();
            for (int64_t d = 0; d < block->padded; d += 2) {
                const __m256i low = _mm256_load_si256((const __m256i *)(query + d * 32));
                const __m256i high = _mm256_load_si256((const __m256i *)(query + d * 32 + 32));
                for (int r = 0; r < 4; r++) {
                    int32_t pair;
                    memcpy(&pair, rows + r * block->stride + d * 2, sizeof pair);
                    const __m256i both = _mm256_set1_epi32(pair);
                    sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(both, low));
                    sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(both, high));
                }
            }
            int32_t *to = (int32_t *)out + (t * BLOCK + row) * LANES;
            for (int r = 0; r < 4; r++)
                for (int half = 0; half < 2; half++)
                    _mm256_storeu_si256((__m256i *)(to + r * LANES + half * 8), sum[r][half]);
        }
    }
}

AVX2 static void fold_int_avx2(const struct job *job, const struct block *block, const struct segment *segments, int count, int64_t tile,
                               int tiles, const void *out, float *maxima, int64_t columns)
{
    for (const struct segment *s = segments; s < segments + count; s++)
        for (int t = 0; t < tiles; t++) {
            float *max = maxima + s->clip * columns + (tile + t) * LANES;
            const int32_t *from = (const int32_t *)out + t * BLOCK * LANES;
            const __m256 none = _mm256_set1_ps(-__builtin_inff());
            __m256 low = block->base ? none : _mm256_loadu_ps(max), high = block->base ? none : _mm256_loadu_ps(max + 8);
            for (int row = s->begin; row < s->end; row++) {
                const __m256 scale = _mm256_set1_ps(job->scale[block->start + row]);
                const __m256i *pair = (const __m256i *)(from + row * LANES);
                low = _mm256_max_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_loadu_si256(pair)), scale), low);
                high = _mm256_max_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_loadu_si256(pair + 1)), scale), high);
            }
            if (block->base) {
                const float *base = block->base + s->centre * columns + (tile + t) * LANES;
                low = _mm256_max_ps(_mm256_add_ps(low, _mm256_loadu_ps(base)), _mm256_loadu_ps(max));
                high = _mm256_max_ps(_mm256_add_ps(high, _mm256_loadu_ps(base + 8)), _mm256_loadu_ps(max + 8));
            }
            _mm256_storeu_ps(max, low);
            _mm256_storeu_ps(max + 8, high);
        }
}

AVX2 static uint32_t load_float(const struct job *job, struct block *block)
{
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    float *copy = (float *)block->memory;
    uint32_t bad = 0;
    for (int row = 0; row < block->count; row++, copy += block->padded) {
        const uint8_t *from = job->tokens + (block->start + row) * job->row_bytes;
        __m256i seen = _mm256_setzero_si256();
        for (int64_t d = 0; d < job->dim; d += 8) {
            __m128i half;
            if (d + 8 <= job->dim) {
                half = _mm_loadu_si128((const __m128i *)(from + d * 2));
            } else {
                uint16_t rest[8] = {0};
                memcpy(rest, from + d * 2, (size_t)(job->dim - d) * 2);
                half = _mm_loadu_si128((const __m128i *)rest);
            }
            const __m256 wide = _mm256_cvtph_ps(half);
            seen = _mm256_or_si256(seen, _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_castps_si256(wide), exponent), exponent));
            _mm256_storeu_ps(copy + d, wide);
        }
        bad |= (uint32_t)!_mm256_testz_si256(seen, seen) << row;
    }
    block->rows = block->memory;
    block->stride = block->padded * 4;
    return bad;
}

AVX2 static void product_float_avx2(const struct job *job, const struct block *block, int64_t tile, int tiles, void *out)
{
    for (int t = 0; t < tiles; t++) {
        const float *query = (const float *)job->query + (tile + t) * block->padded * LANES;
        for (int row = 0; row < block->count; row += 4) {
            const float *rows = (const float *)block->rows + row * block->padded;
            __m256 sum[4][2];
            for (int r = 0; r < 4; r++)
                sum[r][0] = sum[r][1] = _mm256_setzero_ps();
            for (int64_t d = 0; d < block->padded; d++) {
                const __m256 low = _mm256_load_ps(query + d * LANES), high = _mm256_load_ps(query + d * LANES + 8);
                for (int r = 0; r < 4; r++) {
                    const __m256 both = _mm256_broadcast_ss(rows + r * block->padded + d);
                    sum[r][0] = _mm256_fmadd_ps(both, low, sum[r][0]);
                    sum[r][1] = _mm256_fmadd_ps(both, high, sum[r][1]);
                }
            }
            float *to = (float *)out + (t * BLOCK + row) * LANES;
            for (int r = 0; r < 4; r++)
                for (int half = 0; half < 2; half++)
                    _mm256_storeu_ps(to + r * LANES + half * 8, sum[r][half]);
        }
    }
}

AVX2 static void fold_float_avx2(const struct job *job, const struct block *block, const struct segment *segments, int count, int64_t tile,
                                 int tiles, const void *out, float *maxima, int64_t columns)
{
    (void)job, (void)block;
    for (const struct segment *s = segments; s < segments + count; s++)
        for (int t = 0; t < tiles; t++) {
            float *max = maxima + s->clip * columns + (tile + t) * LANES;
            const float *from = (const float *)out + t * BLOCK * LANES;
            __m256 low = _mm256_loadu_ps(max), high = _mm256_loadu_ps(max + 8);
            for (int row = s->begin; row < s->end; row++) {
                low = _mm256_max_ps(_mm256_loadu_ps(from + row * LANES), low);
                high = _mm256_max_ps(_mm256_loadu_ps(from + row * LANES + 8), high);
            }
            _mm256_storeu_ps(max, low);
            _mm256_storeu_ps(max + 8, high);
        }
}

static const struct kernel int8_avx2 = {BLOCK, 2, NULL, NULL, load_int16, NULL, product_int16, fold_int_avx2, mean_avx2};
static const struct kernel int4_avx2 = {BLOCK, 2, NULL, NULL, load_levels_int16, NULL, product_int16, fold_int_avx2, mean_avx2};
static const struct kernel compact_avx2 = {BLOCK, 2, NULL, NULL, load_signs_int16, load_levels_int16, product_int16, fold_int_avx2, mean_avx2};
static const struct kernel float16_avx2 = {BLOCK / 2, 4, NULL, NULL, load_float, NULL, product_float_avx2, fold_float_avx2, mean_avx2};

/* ---- AVX-512: int8 by VNNI, whose left operand is unsigned: tokens get 128 added, `bias` takes it off again ---- */

AVX512 static uint32_t load_unsigned(const struct job *job, struct block *block)
{
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    uint8_t *copy = block->memory;
    for (int row = 0; row < block->count; row++, copy += block->padded) {
        const uint8_t *from = job->tokens + (block->start + row) * job->row_bytes;
        for (int64_t d = 0; d < job->dim; d += 64) {
            const __mmask64 there = job->dim - d >= 64 ? ~0ull : (1ull << (job->dim - d)) - 1;
            _mm512_store_si512(copy + d, _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, from + d), flip));
        }
    }
    block->rows = block->memory;
    block->stride = block->padded;
    return bad_scales_avx512(job, block);
}

/* Tokens of `bits` bits a coordinate as int8, with `flip` added to each by exclusive or. */
AVX512 static inline __attribute__((always_inline)) uint32_t load_packed(const struct job *job, struct block *block, const int bits,
                                                                         const int flip)
{
    const __m512i flips = _mm512_set1_epi8((char)flip), low = _mm512_set1_epi8(15);
    const __m512i table = _mm512_xor_si512(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)LEVELS)), flips);
    const __m512i plus = _mm512_xor_si512(_mm512_set1_epi8(1), flips), minus = _mm512_xor_si512(_mm512_set1_epi8(-1), flips);
    uint8_t *copy = block->memory;
    for (int row = 0; row < block->count; row++, copy += block->padded) {
        const uint8_t *from = job->tokens + (block->start + row) * job->row_bytes;
        int64_t left = job->row_bytes;
        for (int64_t d = 0; d < block->padded; d += 64, from += 8 * bits, left -= 8 * bits) {
            __m512i codes;
            if (bits == 4) {
                const __mmask32 there = left >= 32 ? ~0u : (1u << (left < 0 ? 0 : left)) - 1;
                const __m512i wide = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(there, from));
                codes = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)), low));
            } else {
                uint64_t eight = 0;
                if (left >= 8)
                    memcpy(&eight, from, 8);
                else if (left > 0)
                    memcpy(&eight, from, (size_t)left);
                codes = _mm512_mask_blend_epi8(eight, minus, plus);
            }
            _mm512_store_si512(copy + d, codes);
        }
    }
    block->rows = block->memory;
    block->stride = block->padded;
    return bad_scales_avx512(job, block);
}

AVX512 static uint32_t load_unsigned_levels(const struct job *job, struct block *block) { return load_packed(job, block, 4, 0x80); }
AVX512 static uint32_t load_unsigned_signs(const struct job *job, struct block *block) { return load_packed(job, block, 1, 0x80); }

#define ROWS_AT_ONCE 8

#define SUMS(TILES, TYPE, START)                                                                                                          \
    TYPE sum[ROWS_AT_ONCE][TILES];                                                                                                        \
    for (int r = 0; r < ROWS_AT_ONCE; r++)                                                                                                \
        for (int t = 0; t < TILES; t++)                                                                                                   \
            sum[r][t] = START

#define PRODUCT_UNSIGNED(TILES)                                                                                                           \
    AVX512 static void product_unsigned_##TILES(const struct job *job, const struct block *block, int64_t tile, int32_t *out)             \
    {                                                                                                                                     \
        const uint8_t *query = job->query + tile * block->padded * LANES;                                                                 \
        for (int row = 0; row < block->count; row += ROWS_AT_ONCE) {                                                                      \
            const uint8_t *rows = block->rows + row * block->stride;                                                                      \
            SUMS(TILES, __m512i, _mm512_loadu_si512(job->bias + (tile + t) * LANES));                                                     \
            for (int64_t d = 0; d < block->padded; d += 4) {                                                                              \
                __m512i column[TILES];                                                                                                    \
                for (int t = 0; t < TILES; t++)                                                                                           \
                    column[t] = _mm512_load_si512(query + (t * block->padded + d) * LANES);                                               \
                for (int r = 0; r < ROWS_AT_ONCE; r++) {                                                                                  \
                    int32_t four;                                                                                                         \
                    memcpy(&four, rows + r * block->stride + d, sizeof four);                                                             \
                    for (int t = 0; t < TILES; t++)                                                                                       \
                        sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], _mm512_set1_epi32(four), column[t]);                                   \
                }                                                                                                                         \
            }                                                                                                                             \
            for (int r = 0; r < ROWS_AT_ONCE; r++)                                                                                        \
                for (int t = 0; t < TILES; t++)                                                                                           \
                    _mm512_store_si512(out + (t * BLOCK + row + r) * LANES, sum[r][t]);                                                   \
        }                                                                                                                                 \
    }

PRODUCT_UNSIGNED(1)
PRODUCT_UNSIGNED(2)

static void product_unsigned(const struct job *job, const struct block *block, int64_t tile, int tiles, void *out)
{
    (tiles == 2 ? product_unsigned_2 : product_unsigned_1)(job, block, tile, out);
}

AVX512 static inline __attribute__((always_inline)) void fold_int_and(const int fetching, const struct job *job, const struct block *block,
                                                                       const struct segment *segments, int count, int64_t tile, int tiles,
                                                                       const void *out, float *maxima, int64_t columns)
{
    const char *ahead = fetching ? block->ahead + block->each * block->padded : NULL;
    const float *scale = job->scale + block->start;
    const int32_t *first = out, *second = first + (tiles - 1) * BLOCK * LANES; /* one tile alone is folded twice */
    for (const struct segment *s = segments; s < segments + count; s++) {
        float *max = maxima + s->clip * columns + tile * LANES, *max_second = max + (tiles - 1) * LANES;
        const __m512 none = _mm512_set1_ps(-__builtin_inff());
        __m512 one = block->base ? none : _mm512_loadu_ps(max), two = block->base ? none : _mm512_loadu_ps(max_second);
        for (int row = s->begin; row < s->end; row++) {
            const __m512 by = _mm512_set1_ps(scale[row]);
            if (fetching) {
                _mm_prefetch(ahead, _MM_HINT_T1);
                ahead += 64;
            }
            one = _mm512_max_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(first + row * LANES)), by), one);
            two = _mm512_max_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(second + row * LANES)), by), two);
        }
        if (block->base) {
            const float *base = block->base + s->centre * columns + tile * LANES;
            one = _mm512_max_ps(_mm512_add_ps(one, _mm512_loadu_ps(base)), _mm512_loadu_ps(max));
            two = _mm512_max_ps(_mm512_add_ps(two, _mm512_loadu_ps(base + (tiles - 1) * LANES)), _mm512_loadu_ps(max_second));
        }
        _mm512_storeu_ps(max, one);
        _mm512_storeu_ps(max_second, two);
    }
}

AVX512 static void fold_int(const struct job *job, const struct block *block, const struct segment *segments, int count, int64_t tile,
                            int tiles, const void *out, float *maxima, int64_t columns)
{
    if (block->ahead)
        fold_int_and(1, job, block, segments, count, tile, tiles, out, maxima, columns);
    else
        fold_int_and(0, job, block, segments, count, tile, tiles, out, maxima, columns);
}

#define PRODUCT_FLOAT(TILES)                                                                                                              \
    AVX512 static void product_float_##TILES(const struct job *job, const struct block *block, int64_t tile, float *out)                  \
    {                                                                                                                                     \
        const float *query = (const float *)job->query + tile * block->padded * LANES;                                                    \
        for (int row = 0; row < block->count; row += ROWS_AT_ONCE) {                                                                      \
            const float *rows = (const float *)block->rows + row * block->padded;                                                         \
            SUMS(TILES, __m512, _mm512_setzero_ps());                                                                                     \
            for (int64_t d = 0; d < block->padded; d++) {                                                                                 \
                __m512 column[TILES];                                                                                                     \
                for (int t = 0; t < TILES; t++)                                                                                           \
                    column[t] = _mm512_load_ps(query + (t * block->padded + d) * LANES);                                                  \
                for (int r = 0; r < ROWS_AT_ONCE; r++)                                                                                    \
                    for (int t = 0; t < TILES; t++)                                                                                       \
                        sum[r][t] = _mm512_fmadd_ps(_mm512_set1_ps(rows[r * block->padded + d]), column[t], sum[r][t]);                   \
            }                                                                                                                             \
            for (int r = 0; r < ROWS_AT_ONCE; r++)                                                                                        \
                for (int t = 0; t < TILES; t++)                                                                                           \
                    _mm512_store_ps(out + (t * BLOCK + row + r) * LANES, sum[r][t]);                                                      \
        }                                                                                                                                 \
    }

PRODUCT_FLOAT(1)
PRODUCT_FLOAT(2)

static void product_float(const struct job *job, const struct block *block, int64_t tile, int tiles, void *out)
{
    (tiles == 2 ? product_float_2 : product_float_1)(job, block, tile, out);
}

AVX512 static void fold_float(const struct job *job, const struct block *block, const struct segment *segments, int count, int64_t tile,
                              int tiles, const void *out, float *maxima, int64_t columns)
{
    (void)job, (void)block;
    const float *first = out, *second = first + (tiles - 1) * BLOCK * LANES;
    for (const struct segment *s = segments; s < segments + count; s++) {
        float *max = maxima + s->clip * columns + tile * LANES, *max_second = max + (tiles - 1) * LANES;
        __m512 one = _mm512_loadu_ps(max), two = _mm512_loadu_ps(max_second);
        for (int row = s->begin; row < s->end; row++) {
            one = _mm512_max_ps(_mm512_load_ps(first + row * LANES), one);
            two = _mm512_max_ps(_mm512_load_ps(second + row * LANES), two);
        }
        _mm512_storeu_ps(max, one);
        _mm512_storeu_ps(max_second, two);
    }
}

static const struct kernel int8_avx512 = {BLOCK, 1, NULL, NULL, load_unsigned, NULL, product_unsigned, fold_int, mean_avx512};
static const struct kernel int4_avx512 = {BLOCK, 1, NULL, NULL, load_unsigned_levels, NULL, product_unsigned, fold_int, mean_avx512};
static const struct kernel compact_avx512 = {
    BLOCK, 1, NULL, NULL, load_unsigned_signs, load_unsigned_levels, product_unsigned, fold_int, mean_avx512,
};
static const struct kernel float16_avx512 = {BLOCK / 2, 4, NULL, NULL, load_float, NULL, product_float, fold_float, mean_avx512};

/* ---- AMX: tiles of 16 rows by 64 bytes; two of tokens, two of the query, four of sums ---- */

#ifndef WITHOUT_AMX

enum { AHEAD = 4 }; /* blocks from the one multiplied to the one fetched */

/* The tile intrinsics do not tell the compiler what memory they read. */
#define READS(address) __asm__ volatile("" : : "r"(address) : "memory")

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16]; /* of a tile's row */
    uint8_t rows[16];
};

AMX static void begin_amx(void)
{
    struct tile_config config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        config.bytes[tile] = 64;
        config.rows[tile] = 16;
    }
    READS(&config);
    _tile_loadconfig(&config);
}

AMX static void end_amx(void) { _tile_release(); }

/* Tokens are multiplied where they lie, unless the width is not of whole tiles or a tile would reach past the last row. */
static uint32_t load_in_place(const struct job *job, struct block *block)
{
    block->rows = job->tokens + block->start * job->dim;
    block->stride = block->padded;
    block->ahead = (const char *)block->rows + AHEAD * BLOCK * block->padded;
    if (job->dim != block->padded || block->start + BLOCK > job->rows) {
        for (int row = 0; row < block->count; row++)
            memcpy(block->memory + row * block->padded, block->rows + row * job->dim, (size_t)job->dim);
        block->rows = block->memory;
        block->ahead = NULL;
    }
    return bad_scales_avx512(job, block);
}

AVX512 static uint32_t load_levels(const struct job *job, struct block *block) { return load_packed(job, block, 4, 0); }
AVX512 static uint32_t load_signs(const struct job *job, struct block *block) { return load_packed(job, block, 1, 0); }

/* Asks for so many lines, and returns where the next one is. */
static inline __attribute__((always_inline)) const char *fetch(const char *ahead, int64_t lines)
{
    for (int64_t i = 0; i < lines; i++, ahead += 64)
        _mm_prefetch(ahead, _MM_HINT_T1);
    return ahead;
}

AMX static void product_amx(const struct job *job, const struct block *block, int64_t tile, int tiles, void *out)
{
    const int64_t stride = block->stride, tile_bytes = block->padded * LANES;
    const uint8_t *upper = block->rows, *lower = upper + 16 * stride, *query = job->query + tile * tile_bytes;
    int32_t *to = out;
    /* The processor's own prefetching does not follow tiles through memory. Lines are asked for all along the way, behind
     * products and while folding: so many at once as a block has would wait for each other. */
    const char *ahead = block->ahead;
    const int64_t each = ahead ? block->each : 0;
    READS(upper);
    _tile_zero(0);
    _tile_zero(1);
    if (tiles == 2) {
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t d = 0; d < block->padded; d += 64, query += 1024) {
            _tile_loadd(6, query, 64);
            _tile_loadd(4, upper + d, stride);
            _tile_loadd(7, query + tile_bytes, 64);
            _tile_loadd(5, lower + d, stride);
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(2, 4, 7);
            ahead = fetch(ahead, each / 2);
            _tile_dpbssd(1, 5, 6);
            _tile_dpbssd(3, 5, 7);
            ahead = fetch(ahead, each - each / 2);
        }
        _tile_stored(2, to + BLOCK * LANES, 64);
        _tile_stored(3, to + (BLOCK + 16) * LANES, 64);
    } else {
        for (int64_t d = 0; d < block->padded; d += 64, query += 1024) {
            _tile_loadd(6, query, 64);
            _tile_loadd(4, upper + d, stride);
            _tile_loadd(5, lower + d, stride);
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 5, 6);
            ahead = fetch(ahead, each);
        }
    }
    _tile_stored(0, to, 64);
    _tile_stored(1, to + 16 * LANES, 64);
}

/* float16 is two bfloat16 exactly (11 bits are 8 and 3); of the float32 query two give 16 bits of 24. Three products of
 * bfloat16 are then off by at most 2^-17 of the sum of |q d|: the fourth, and the query's third part, are left out. */
AMX static __m512 widened(__m256i upper)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
}

AMX static uint32_t load_halves(const struct job *job, struct block *block)
{
    const __m512i exponent = _mm512_set1_epi16(0x7c00);
    uint16_t *high = (uint16_t *)block->memory, *low = high + BLOCK * block->padded;
    uint32_t bad = 0;
    for (int row = 0; row < block->count; row++, high += block->padded, low += block->padded) {
        const uint8_t *from = job->tokens + (block->start + row) * job->row_bytes;
        __mmask32 seen = 0;
        for (int64_t d = 0; d < job->dim; d += 32) {
            const __mmask32 there = job->dim - d >= 32 ? ~0u : (1u << (job->dim - d)) - 1;
            const __m512i half = _mm512_maskz_loadu_epi16(there, from + d * 2);
            const __m512 left = _mm512_cvtph_ps(_mm512_castsi512_si256(half)), right = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
            const __m512i upper = (__m512i)_mm512_cvtne2ps_pbh(right, left);
            const __m512 left_rest = _mm512_sub_ps(left, widened(_mm512_castsi512_si256(upper)));
            const __m512 right_rest = _mm512_sub_ps(right, widened(_mm512_extracti64x4_epi64(upper, 1)));
            seen |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(half, exponent), exponent);
            _mm512_storeu_si512(high + d, upper);
            _mm512_storeu_si512(low + d, (__m512i)_mm512_cvtne2ps_pbh(right_rest, left_rest));
        }
        bad |= (uint32_t)(seen != 0) << row;
    }
    block->rows = block->memory;
    block->stride = block->padded * 2;
    return bad;
}

/* The query's tiles: the upper halves of one tile, then its lower halves. */
AMX static void product_halves(const struct job *job, const struct block *block, int64_t tile, int tiles, void *out)
{
    const int64_t stride = block->stride, half_tile = block->padded * 2 * LANES, half_block = BLOCK * stride;
    const uint8_t *upper = block->rows, *lower = upper + 16 * stride;
    const uint8_t *query = job->query + tile * 2 * half_tile;
    float *to = out;
    READS(upper);
    _tile_zero(0);
    _tile_zero(1);
    if (tiles == 2) {
        const uint8_t *second = query + 2 * half_tile;
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t d = 0; d < stride; d += 64) {
            const int64_t at = d * LANES;
            _tile_loadd(6, query + at, 64);
            _tile_loadd(4, upper + half_block + d, stride);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, lower + half_block + d, stride);
            _tile_dpbf16ps(1, 5, 6);
            _tile_loadd(7, second + at, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
            _tile_loadd(4, upper + d, stride);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, lower + d, stride);
            _tile_dpbf16ps(1, 5, 6);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
            _tile_loadd(6, query + half_tile + at, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
            _tile_loadd(7, second + half_tile + at, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(2, to + BLOCK * LANES, 64);
        _tile_stored(3, to + (BLOCK + 16) * LANES, 64);
    } else {
        for (int64_t d = 0; d < stride; d += 64) {
            const int64_t at = d * LANES;
            _tile_loadd(6, query + at, 64);
            _tile_loadd(4, upper + half_block + d, stride);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, lower + half_block + d, stride);
            _tile_dpbf16ps(1, 5, 6);
            _tile_loadd(4, upper + d, stride);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, lower + d, stride);
            _tile_dpbf16ps(1, 5, 6);
            _tile_loadd(7, query + half_tile + at, 64);
            _tile_dpbf16ps(0, 4, 7);
            _tile_dpbf16ps(1, 5, 7);
        }
    }
    _tile_stored(0, to, 64);
    _tile_stored(1, to + 16 * LANES, 64);
}

static const struct kernel float16_amx = {BLOCK, 4, begin_amx, end_amx, load_halves, NULL, product_halves, fold_float, mean_avx512};
static const struct kernel int8_amx = {BLOCK, 1, begin_amx, end_amx, load_in_place, NULL, product_amx, fold_int, mean_avx512};
static const struct kernel int4_amx = {BLOCK, 1, begin_amx, end_amx, load_levels, NULL, product_amx, fold_int, mean_avx512};
static const struct kernel compact_amx = {BLOCK, 1, begin_amx, end_amx, load_signs, load_levels, product_amx, fold_int, mean_avx512};

#endif

static uint64_t enabled_registers(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Linux hands out the tile registers on request, once for the whole process. */
static int amx_permitted(void)
{
#if defined(__linux__) && !defined(WITHOUT_AMX)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
}

static int features(void)
{
    uint32_t a, b, c, d, b7, c7, d7;
    int found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) /* OSXSAVE */
        return 0;
    const uint32_t c1 = c;
    const uint64_t enabled = enabled_registers();
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7))
        return 0;
    if ((enabled & 6) == 6 && (b7 >> 5 & 1) && (c1 >> 12 & 1) && (c1 >> 29 & 1)) /* AVX2, FMA, F16C */
        found |= KERNEL_AVX2;
    const uint32_t wide = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* AVX-512 F, DQ, BW, VL */
    if ((found & KERNEL_AVX2) && (enabled & 0xe6) == 0xe6 && (b7 & wide) == wide && (c7 >> 11 & 1)) /* VNNI */
        found |= KERNEL_AVX512;
    const uint32_t tiles = 1u << 22 | 1u << 24 | 1u << 25; /* AMX bf16, tile, int8 */
    if ((found & KERNEL_AVX512) && (enabled >> 17 & 3) == 3 && (d7 & tiles) == tiles && amx_permitted())
        found |= KERNEL_AMX;
    return found;
}

/* By the kernel's bit: [AVX2, AVX-512, AMX][type]. */
static const struct kernel *const kernels[3][TYPES] = {
    {&int8_avx2, &float16_avx2, &int4_avx2, &compact_avx2},
    {&int8_avx512, &float16_avx512, &int4_avx512, &compact_avx512},
#ifndef WITHOUT_AMX
    {&int8_amx, &float16_amx, &int4_amx, &compact_amx},
#endif
};

static const struct kernel *kernel_of(int which, int type)
{
    return which == KERNEL_AVX2 ? kernels[0][type] : which == KERNEL_AVX512 ? kernels[1][type] : which == KERNEL_AMX ? kernels[2][type] : NULL;
}

#else /* not x86-64: the library loads, and says that it has nothing to offer */

static int features(void) { return 0; }
static const struct kernel *kernel_of(int which, int type) { return (void)which, (void)type, NULL; }

#endif

#define EXPORT __attribute__((visibility("default")))

EXPORT int vctool_kernel_abi(void) { return ABI; }

/* Bits of the kernels that this CPU and operating system can run. */
EXPORT int vctool_kernel_features(void) { return features(); }

EXPORT int vctool_score(int which, int type, const struct job *job)
{
    const struct kernel *kernel = type >= 0 && type < TYPES ? kernel_of(which, type) : NULL;
    return kernel ? run_kernel(kernel, job) : NO_KERNEL;
}
