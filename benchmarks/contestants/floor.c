/* Iterations of Algorithm 1 for a network of one hidden layer, by hand, on one thread.

   The network's sizes are macros, so that the compiler knows every loop: INPUTS, HIDDEN, CLASSES,
   BATCH (b) and BLOCK (B). x is laid out as in asvrg.mlp: the matrices [inputs + 1, outputs], whose
   last rows are the biases, one after the other.

   Rows are padded to whole vectors of WIDTH floats. A load may read up to WIDTH - 1 floats beyond a
   row of x, into the next one, where it meets padding of the result; behind the end of x so many
   floats must be readable. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define WIDTH 16
#define STRIPS(columns) (((columns) + WIDTH - 1) / WIDTH)
#define TILE 4  /* vectors of a row that are summed up at once, for ROWS rows: 20 registers */
#define ROWS 5
#define FIRST ((INPUTS + 1) * HIDDEN)
#define OUTS (STRIPS(CLASSES) * WIDTH)
#define WIDE (STRIPS(HIDDEN) * WIDTH)

typedef float vector __attribute__((vector_size(4 * WIDTH)));
typedef float unaligned __attribute__((vector_size(4 * WIDTH), aligned(4)));

#define INLINE static inline __attribute__((always_inline))

INLINE vector load(const float *from) { return *(const unaligned *)from; }

/* result[rows, strips] = rows of in times a matrix [length + 1, stride], bias included. */
INLINE void tile(const float *const *in, int length, const float *matrix, int stride, float *result,
                 int wide, const int rows, const int strips) {
  vector sum[ROWS][TILE];
  const float *bias = matrix + length * stride;
  for (int r = 0; r < rows; r++)
    for (int s = 0; s < strips; s++) sum[r][s] = load(bias + s * WIDTH);
  for (int k = 0; k < length; k++)
    for (int r = 0; r < rows; r++)
      for (int s = 0; s < strips; s++) sum[r][s] += in[r][k] * load(matrix + k * stride + s * WIDTH);
  for (int r = 0; r < rows; r++)
    for (int s = 0; s < strips; s++) *(vector *)(result + r * wide + s * WIDTH) = sum[r][s];
}

INLINE void rows_of(const float *const *in, int length, const float *matrix, int columns,
                    float *result, const int rows) {
  const int strips = STRIPS(columns), wide = strips * WIDTH;
  int s = 0;
  for (; s + TILE <= strips; s += TILE)
    tile(in, length, matrix + s * WIDTH, columns, result + s * WIDTH, wide, rows, TILE);
  if (strips % TILE)
    tile(in, length, matrix + s * WIDTH, columns, result + s * WIDTH, wide, rows, strips % TILE);
}

/* result[BATCH, padded columns] = rows of in times a matrix [length + 1, columns], bias included. */
INLINE void product(const float *const *in, int length, const float *matrix, int columns,
                    float *result) {
  const int wide = STRIPS(columns) * WIDTH;
  int r = 0;
  for (; r + ROWS <= BATCH; r += ROWS)
    rows_of(in + r, length, matrix, columns, result + r * wide, ROWS);
  if (BATCH % ROWS) rows_of(in + r, length, matrix, columns, result + r * wide, BATCH % ROWS);
}

/* Does `count` iterations in place on x.

   inputs [n, INPUTS], labels [n]; x, x_tilde, full_grad [d]; of the snapshot hidden [n, HIDDEN],
   hidden_deltas [n, HIDDEN] and out_deltas [n, CLASSES]; batches [count, BATCH]; blocks
   [count, BLOCK], distinct in a row. */
void iterate(int64_t count, const float *inputs, const int32_t *labels, float *x,
             const float *x_tilde, const float *full_grad, const float *hidden,
             const float *hidden_deltas, const float *out_deltas, const int32_t *batches,
             const int32_t *blocks, float lr, float l2) {
  float *second = x + FIRST;
  const int last = HIDDEN * CLASSES; /* of the second layer, where its biases begin */
  for (int64_t t = 0; t < count; t++, batches += BATCH, blocks += BLOCK) {
    const float *in[BATCH], *mid[BATCH];
    float h[BATCH * WIDE] __attribute__((aligned(64)));
    float out[BATCH * OUTS] __attribute__((aligned(64)));
    float transposed[CLASSES * WIDE] __attribute__((aligned(64)));
    float delta[BATCH * WIDE] __attribute__((aligned(64)));
    float by_unit[HIDDEN * BATCH];

    for (int i = 0; i < BATCH; i++) {
      in[i] = inputs + (int64_t)batches[i] * INPUTS;
      mid[i] = h + i * WIDE;
    }
    product(in, INPUTS, x, HIDDEN, h);
    for (int i = 0; i < BATCH * WIDE; i++) h[i] = h[i] > 0 ? h[i] : 0;
    product(mid, HIDDEN, second, CLASSES, out);

    for (int i = 0; i < BATCH; i++) {
      float *row = out + i * OUTS, most = row[0], sum = 0;
      for (int c = 1; c < CLASSES; c++) most = row[c] > most ? row[c] : most;
      for (int c = 0; c < CLASSES; c++) sum += row[c] = expf(row[c] - most);
      for (int c = 0; c < CLASSES; c++) row[c] /= sum;
      row[labels[batches[i]]] -= 1;
    }

    memset(transposed, 0, sizeof transposed);
    for (int j = 0; j < HIDDEN; j++)
      for (int c = 0; c < CLASSES; c++) transposed[c * WIDE + j] = second[j * CLASSES + c];
    for (int i = 0; i < BATCH; i++) {
      vector sum[STRIPS(HIDDEN)] = {0};
      for (int c = 0; c < CLASSES; c++)
        for (int s = 0; s < STRIPS(HIDDEN); s++)
          sum[s] += out[i * OUTS + c] * load(transposed + c * WIDE + s * WIDTH);
      memcpy(delta + i * WIDE, sum, sizeof sum);
    }
    for (int i = 0; i < BATCH; i++) {
      const float *at_snapshot = hidden_deltas + (int64_t)batches[i] * HIDDEN;
      for (int j = 0; j < HIDDEN; j++)
        by_unit[j * BATCH + i] =
            (h[i * WIDE + j] > 0 ? delta[i * WIDE + j] : 0) - at_snapshot[j];
    }

    for (int j = 0; j < BLOCK; j++) {
      const int k = blocks[j];
      float sum = 0;
      if (k < FIRST) {
        const int row = k / HIDDEN;
        const float *of_unit = by_unit + k % HIDDEN * BATCH;
        if (row < INPUTS)
          for (int i = 0; i < BATCH; i++) sum += in[i][row] * of_unit[i];
        else
          for (int i = 0; i < BATCH; i++) sum += of_unit[i];
      } else {
        const int row = (k - FIRST) / CLASSES, c = (k - FIRST) % CLASSES;
        for (int i = 0; i < BATCH; i++) {
          const float now = out[i * OUTS + c];
          const float then = out_deltas[(int64_t)batches[i] * CLASSES + c];
          if (k - FIRST < last)
            sum += h[i * WIDE + row] * now - hidden[(int64_t)batches[i] * HIDDEN + row] * then;
          else
            sum += now - then;
        }
      }
      x[k] -= lr * (sum * (1.0f / BATCH) + l2 * (x[k] - x_tilde[k]) + full_grad[k]);
    }
  }
}
