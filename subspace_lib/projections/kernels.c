/* The products of a training step, theta0 + P z and P^T v, each in one pass over the weights.

   kernels.py compiles this file on first use. What a function computes stands in PyTorch's words in the file of its
   family, and tests hold the two together. Numbers are float32 and lie without gaps; what is small (tables of size d,
   sums over threads) is left to PyTorch. A thread writes to its own weights, or to its own row of sums, alone. */

#include <omp.h>
#include <stdint.h>
#include <string.h>

/* one_hot: out = theta0 + table[entry]. */
void one_hot_write(int64_t threads, int64_t D, const float *restrict theta0, const float *restrict table,
                   const int32_t *restrict entry, float *restrict out)
{
    #pragma omp parallel for simd num_threads(threads)
    for (int64_t i = 0; i < D; i++)
        out[i] = theta0[i] + table[entry[i]];
}

/* one_hot, for a v that lies in pieces: sums[thread][entry] += v, and z = scale (sums of z's entries - of -z's). */
void one_hot_pull(int64_t threads, int64_t count, int64_t d, const int64_t *lengths, const float *const *pieces,
                  const int32_t *entry, const float *scale, float *sums, float *z)
{
    #pragma omp parallel num_threads(threads)
    {
        float *restrict own = memset(sums + omp_get_thread_num() * 2 * d, 0, 2 * d * sizeof *sums);
        for (int64_t k = 0, first = 0; k < count; first += lengths[k++]) {
            #pragma omp for nowait
            for (int64_t i = 0; i < lengths[k]; i++)
                own[entry[first + i]] += pieces[k][i];
        }
        #pragma omp barrier
        #pragma omp for
        for (int64_t j = 0; j < d; j++) {
            float total = 0;
            for (float *one = sums + j; one < sums + omp_get_num_threads() * 2 * d; one += 2 * d)
                total += one[0] - one[d];
            z[j] = scale[j] * total;
        }
    }
}

/* As many numbers as the processor takes in one step. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
typedef float row __attribute__((vector_size(4 * LANES)));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));

/* The first `count` numbers, and zeros. */
static inline row load(const float *from, int64_t count)
{
    row x = {0};
    if (count >= LANES)
        memcpy(&x, from, sizeof x);
    else if (count > 0)
        memcpy(&x, from, count * sizeof *from);
    return x;
}

static inline void store(float *to, row x, int64_t count)
{
    if (count >= LANES)
        memcpy(to, &x, sizeof x);
    else
        for (int64_t c = 0; c < count; c++)
            to[c] = x[c];
}

static inline row splat(float x) { return x - (row){0}; }

/* The first `count` numbers of x, and zeros, whatever the others are. */
static inline row first_of(row x, int64_t count)
{
    mask counted;
    for (int c = 0; c < LANES; c++)
        counted[c] = c < count ? -1 : 0;
    return count >= LANES ? x : (row)((mask)x & counted);
}

/* The Hadamard transform of each column of n = 2^k numbers; depth first, so that most of it happens in the
   smallest cache, and by three factors of two at a time. */
#define MIX(a, b) { row difference = a - b; a += b; b = difference; }

static void transform(row *x, int64_t n)
{
    if (n < 8) {
        for (int64_t step = 1; step < n; step *= 2)
            for (int64_t i = 0; i < n; i++)
                if (!(i & step))
                    MIX(x[i], x[i + step])
        return;
    }
    int64_t step = n / 8;
    for (int k = 0; step > 1 && k < 8; k++)
        transform(x + k * step, step);
    for (row *y = x; y < x + step; y++) {
        row a = y[0], b = y[step], c = y[2 * step], d = y[3 * step];
        row e = y[4 * step], f = y[5 * step], g = y[6 * step], h = y[7 * step];
        MIX(a, b) MIX(c, d) MIX(e, f) MIX(g, h)
        MIX(a, c) MIX(b, d) MIX(e, g) MIX(f, h)
        MIX(a, e) MIX(b, f) MIX(c, g) MIX(d, h)
        y[0] = a, y[step] = b, y[2 * step] = c, y[3 * step] = d;
        y[4 * step] = e, y[5 * step] = f, y[6 * step] = g, y[7 * step] = h;
    }
}

/* `count` blocks of n rows are worked on in strips that fit into the second cache. Where 16 blocks or more lie side by
   side, a strip is some multiple of 16 columns, each a block; else it is one block, whose neighbours make columns, or
   one column where there are too few. Entry (i, c) of a strip lies at first + i * stride + c, and in the scratch
   memory in row c / LANES * rows + i. */
struct strip {
    int64_t first, rows, stride, columns;
    int one_block;
};

static int64_t strips(int64_t count, int64_t width) { return count >= 16 ? (count - 1) / (16 * width) + 1 : count; }

static struct strip strip(int64_t k, int64_t count, int64_t n, int64_t width)
{
    int64_t first = 16 * width * k, left = count - first;
    if (count >= 16)
        return (struct strip){first, n, count, left < 16 * width ? left : 16 * width, 0};
    if (n >= LANES)
        return (struct strip){k * n, n / LANES, LANES, LANES, 1};
    return (struct strip){k * n, n, 1, 1, 0};
}

/* Visit row i of a strip, or all of it, LANES entries at a time. */
#define EACH_CHUNK(s, i) \
    for (int64_t c = 0, at = s.first + i * s.stride; c < s.columns; c += LANES, at += LANES)
#define EACH(s) \
    for (int64_t i = 0; i < s.rows; i++) \
        EACH_CHUNK(s, i)

/* Transform the columns of a strip; those of one block also among each other, by H, of order 16. */
static void mix(row *x, struct strip s, const float *H)
{
    for (int64_t c = 0; c < s.columns; c += LANES)
        transform(x + c / LANES * s.rows, s.rows);
    for (int64_t i = 0; s.one_block && i < s.rows; i++) {
        row y = {0};
        for (int k = 0; k < LANES; k++)
            y += x[i][k] * load(H + 16 * k, LANES);
        x[i] = y;
    }
}

/* What belongs to row i of every block of a strip. */
static inline row of_rows(const float *x, int64_t i, struct strip s)
{
    return s.one_block ? load(x + LANES * i, LANES) : splat(x[i]);
}

/* Add to the sums of row i of all blocks. */
static inline void add(float *sums, int64_t i, struct strip s, row x)
{
    if (s.one_block)
        store(sums + LANES * i, load(sums + LANES * i, LANES) + x, LANES);
    else
        for (int c = 0; c < LANES; c++)
            sums[i] += x[c];
}

/* Fetch the line that comes so many rows later: the processor does not foresee strides. */
#define AHEAD 8
#define FETCH(x) __builtin_prefetch((x) + at + AHEAD * s.stride)

/* hadamard, one group of blocks: out = theta0 + R H (B C z), where `placed` is C z. */
void hadamard_write(int64_t threads, int64_t count, int64_t n, int64_t width, const float *theta0, const float *placed,
                    const float *entries, const float *row_signs, const float *H, float *scratch, float *out)
{
    #pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < strips(count, width); k++) {
        struct strip s = strip(k, count, n, width);
        row *x = (row *)scratch + omp_get_thread_num() * width * n * (16 / LANES);
        EACH(s) {
            FETCH(entries);
            x[c / LANES * s.rows + i] = load(entries + at, count * n - at) * of_rows(placed, i, s);
        }
        mix(x, s, H);
        EACH(s) {
            FETCH(theta0);
            FETCH(out);
            row moved = x[c / LANES * s.rows + i] * of_rows(row_signs, i, s);
            store(out + at, load(theta0 + at, count * n - at) + moved, s.columns - c);
        }
    }
}

/* hadamard, one group of blocks: sums[thread] += B^T H R v without the places of C, summed over blocks, from zeros. */
void hadamard_pull(int64_t threads, int64_t count, int64_t n, int64_t width, const float *v, const float *entries,
                   const float *row_signs, const float *H, float *scratch, float *sums)
{
    #pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < strips(count, width); k++) {
        struct strip s = strip(k, count, n, width);
        row *x = (row *)scratch + omp_get_thread_num() * width * n * (16 / LANES);
        EACH(s) {
            FETCH(v);
            x[c / LANES * s.rows + i] = load(v + at, count * n - at) * of_rows(row_signs, i, s);
        }
        mix(x, s, H);
        for (int64_t i = 0; i < s.rows; i++) {
            row total = {0};
            EACH_CHUNK(s, i) {
                FETCH(entries);
                total += first_of(load(entries + at, count * n - at) * x[c / LANES * s.rows + i], s.columns - c);
            }
            add(sums + omp_get_thread_num() * n, i, s, total);
        }
    }
}

typedef int8_t bytes __attribute__((vector_size(LANES)));

/* As `load`, of signs that are kept in a byte each. */
static inline row load_signs(const int8_t *from, int64_t count)
{
    bytes x = {0};
    memcpy(&x, from, count < LANES ? count : LANES);
    return __builtin_convertvector(x, row);
}

/* fastfood: y = Pi x, for the columns of a strip. */
static void reorder(row *y, const row *x, struct strip s, const int64_t *order)
{
    if (s.one_block)
        for (int64_t i = 0; i < s.rows * LANES; i++)
            ((float *)y)[i] = ((const float *)x)[order[i]];
    else
        EACH(s)
            y[c / LANES * s.rows + i] = x[c / LANES * s.rows + order[i]];
}

/* fastfood: out = theta0 + S H G Pi H B z, cut to D; `padded` is z with zeros up to n. */
void fastfood_write(int64_t threads, int64_t count, int64_t n, int64_t width, int64_t D, const float *theta0,
                    const float *padded, const int8_t *signs, const int64_t *order, const float *gaussian,
                    const float *lengths, const float *H, float *scratch, float *out)
{
    #pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < strips(count, width); k++) {
        struct strip s = strip(k, count, n, width);
        int64_t size = width * n * (16 / LANES);
        row *x = (row *)scratch + 2 * omp_get_thread_num() * size, *y = x + size;
        EACH(s) {
            x[c / LANES * s.rows + i] = load_signs(signs + at, count * n - at) * of_rows(padded, i, s);
        }
        mix(x, s, H);
        reorder(y, x, s, order);
        EACH(s) {
            FETCH(gaussian);
            y[c / LANES * s.rows + i] *= load(gaussian + at, count * n - at);
        }
        mix(y, s, H);
        EACH(s) {
            int64_t left = s.columns - c < D - at ? s.columns - c : D - at;
            FETCH(theta0);
            FETCH(lengths);
            FETCH(out);
            row moved = load(lengths + at, D - at) * y[c / LANES * s.rows + i];
            store(out + at, load(theta0 + at, D - at) + moved, left);
        }
    }
}

/* fastfood: sums[thread] += B H Pi^T G H S v, summed over blocks, from zeros. */
void fastfood_pull(int64_t threads, int64_t count, int64_t n, int64_t width, int64_t D, const float *v,
                   const int8_t *signs, const int64_t *inverse_order, const float *gaussian, const float *lengths,
                   const float *H, float *scratch, float *sums)
{
    #pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < strips(count, width); k++) {
        struct strip s = strip(k, count, n, width);
        int64_t size = width * n * (16 / LANES);
        row *x = (row *)scratch + 2 * omp_get_thread_num() * size, *y = x + size;
        EACH(s) {
            FETCH(v);
            FETCH(lengths);
            x[c / LANES * s.rows + i] = load(v + at, D - at) * load(lengths + at, D - at);
        }
        mix(x, s, H);
        EACH(s) {
            FETCH(gaussian);
            x[c / LANES * s.rows + i] *= load(gaussian + at, count * n - at);
        }
        reorder(y, x, s, inverse_order);
        mix(y, s, H);
        for (int64_t i = 0; i < s.rows; i++) {
            row total = {0};
            EACH_CHUNK(s, i) {
                total += first_of(load_signs(signs + at, count * n - at) * y[c / LANES * s.rows + i], s.columns - c);
            }
            add(sums + omp_get_thread_num() * n, i, s, total);
        }
    }
}

/* sparse: out = start + A x, for a matrix A of entries +-1 whose rows are in groups of 16 that are nearly equally long.
   Group g has the rows order[16 g], ..., and its entries lie at offsets[g] * 16 on, one of each row in turn: places in
   table = [x, -x, 0], the last where a row has ended. */
void sparse_product(int64_t threads, int64_t rows, const int64_t *offsets, const uint16_t *entries,
                    const int32_t *order, const float *start, const float *table, float *out)
{
    #pragma omp parallel for num_threads(threads) schedule(dynamic, 64)
    for (int64_t first = 0; first < rows; first += 16) {
        float total[16] = {0};
        for (int64_t e = offsets[first / 16]; e < offsets[first / 16 + 1]; e++)
            for (int c = 0; c < 16; c++)
                total[c] += table[entries[16 * e + c]];
        for (int c = 0; c < 16 && first + c < rows; c++)
            out[order[first + c]] = start[order[first + c]] + total[c];
    }
}
