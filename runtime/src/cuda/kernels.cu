// What tfhe's CUDA library has no kernel for: gathers, integer linear maps, products of accumulators by tables, sums of
// packed ciphertexts at a stride; and memory functions that return errors where tfhe's abort the process.
//
// All arithmetic is on words modulo 2^64. Every function returns a cudaError_t, 0 for success; launches are
// asynchronous on the given stream. Operands are device addresses, one for each ciphertext, 0 for an absent one.

#include <cstdint>
#include <cstring>
#include <cuda_runtime.h>

using word = uint64_t;

namespace {

constexpr int THREADS = 256;
/// Output rows of a linear map that a thread sums at once: each loaded word is used that often.
constexpr int ROWS = 8;
/// Operands whose weights and addresses are in shared memory at once.
constexpr int DEPTH = 64;

__global__ void gather(word *out, const word *const *from, uint32_t width) {
  const word *in = from[blockIdx.x];
  word *row = out + static_cast<uint64_t>(blockIdx.x) * width;
  for (uint32_t i = threadIdx.x; i < width; i += blockDim.x)
    row[i] = in ? in[i] : 0;
}

/// Trivial accumulators: `size` table entries in units of 2^-32 behind masks of zeros.
__global__ void fill_tables(word *out, const int32_t *tables, const uint32_t *table_of, uint32_t masks, uint32_t size) {
  word *row = out + static_cast<uint64_t>(blockIdx.x) * (masks + size);
  const int32_t *table = tables + static_cast<uint64_t>(table_of[blockIdx.x]) * size;
  for (uint32_t i = threadIdx.x; i < masks; i += blockDim.x)
    row[i] = 0;
  for (uint32_t i = threadIdx.x; i < size; i += blockDim.x)
    row[masks + i] = static_cast<word>(static_cast<int64_t>(table[i])) << 32;
}

/// One polynomial of a GLWE times an integer table of `entries` coefficients, modulo X^size + 1. Block x: ciphertext,
/// block y: polynomial.
__global__ void multiply_tables(word *out, const word *const *glwes, const int32_t *tables, const uint32_t *table_of,
                                uint32_t entries, uint32_t size) {
  extern __shared__ word polynomial[];
  int32_t *table = reinterpret_cast<int32_t *>(polynomial + size);
  const word *in = glwes[blockIdx.x] + static_cast<uint64_t>(blockIdx.y) * size;
  const int32_t *from = tables + static_cast<uint64_t>(table_of[blockIdx.x]) * entries;
  for (uint32_t i = threadIdx.x; i < size; i += blockDim.x)
    polynomial[i] = in[i];
  for (uint32_t i = threadIdx.x; i < entries; i += blockDim.x)
    table[i] = from[i];
  __syncthreads();
  word *row = out + (static_cast<uint64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * size;
  for (uint32_t c = threadIdx.x; c < size; c += blockDim.x) {
    word sum = 0;
    uint32_t straight = min(c + 1, entries);
    for (uint32_t e = 0; e < straight; e++)
      sum += static_cast<word>(static_cast<int64_t>(table[e])) * polynomial[c - e];
    for (uint32_t e = straight; e < entries; e++)
      sum -= static_cast<word>(static_cast<int64_t>(table[e])) * polynomial[c + size - e];
    row[c] = sum;
  }
}

/// Sums keyswitched LWEs into GLWEs: products first[g]..first[g+1] belong to GLWE g, product i at X^degree[i].
///
/// A keyswitch adds the body of its LWE to the last word; in a GLWE it belongs to coefficient 0 of the body.
__global__ void pack_sum(word *out, const word *products, const word *lwes, const uint32_t *first,
                         const uint32_t *degrees, uint32_t lwe_size, uint32_t polynomials, uint32_t size) {
  const uint32_t words = polynomials * size;
  for (uint32_t at = threadIdx.x; at < words; at += blockDim.x) {
    const bool body = at / size == polynomials - 1;
    const uint32_t c = at % size;
    word sum = 0;
    for (uint32_t i = first[blockIdx.x]; i < first[blockIdx.x + 1]; i++) {
      const uint32_t degree = degrees[i];
      const bool wraps = c < degree;
      const uint32_t source = wraps ? c + size - degree : c - degree;
      word value = products[static_cast<uint64_t>(i) * words + (at - c) + source];
      if (body) {
        const word b = lwes[static_cast<uint64_t>(i + 1) * lwe_size - 1];
        value += source == 0 ? b : 0;
        value -= source == size - 1 ? b : 0;
      }
      sum += wraps ? -value : value;
    }
    out[static_cast<uint64_t>(blockIdx.x) * words + at] = sum;
  }
}

struct Linear {
  word *out;
  const word *const *operands;
  const uint32_t *set;
  const int32_t *weights;
  const word *bias;
  uint32_t outputs, depth, size, tiles_of_rows, tiles_of_words;
};

/// out[g·M + m] = Σ_k W[set[g]][m][k]·operand[g·K + k] + bias. A block: ROWS outputs of a group, THREADS words of each.
__global__ void __launch_bounds__(THREADS) linear(const Linear x) {
  __shared__ __align__(16) int32_t weights[DEPTH][ROWS];
  __shared__ const word *operands[DEPTH];
  const uint32_t rows_tile = blockIdx.x % x.tiles_of_rows;
  const uint32_t words_tile = blockIdx.x / x.tiles_of_rows % x.tiles_of_words;
  const uint32_t group = blockIdx.x / x.tiles_of_rows / x.tiles_of_words;
  const uint32_t first = rows_tile * ROWS, at = words_tile * THREADS + threadIdx.x;
  const uint32_t rows = min(ROWS, x.outputs - first);
  const int32_t *set = x.weights + (static_cast<uint64_t>(x.set[group]) * x.outputs + first) * x.depth;
  word sums[ROWS] = {};
  for (uint32_t start = 0; start < x.depth; start += DEPTH) {
    const uint32_t depth = min(DEPTH, x.depth - start);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < DEPTH * ROWS; i += THREADS) {
      const uint32_t k = i % DEPTH, r = i / DEPTH;
      weights[k][r] = k < depth && r < rows ? set[static_cast<uint64_t>(r) * x.depth + start + k] : 0;
    }
    if (threadIdx.x < depth)
      operands[threadIdx.x] = x.operands[static_cast<uint64_t>(group) * x.depth + start + threadIdx.x];
    __syncthreads();
    for (uint32_t k = 0; k < depth; k++) {
      const int4 low = *reinterpret_cast<const int4 *>(&weights[k][0]);
      const int4 high = *reinterpret_cast<const int4 *>(&weights[k][4]);
      const bool zero = (low.x | low.y | low.z | low.w | high.x | high.y | high.z | high.w) == 0;
      if (zero || !operands[k] || at >= x.size)
        continue;
      const word value = operands[k][at];
      const int32_t w[ROWS] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int r = 0; r < ROWS; r++)
        sums[r] += static_cast<word>(static_cast<int64_t>(w[r])) * value;
    }
  }
  if (at >= x.size)
    return;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (r >= rows)
      break;
    const uint64_t output = static_cast<uint64_t>(group) * x.outputs + first + r;
    x.out[output * x.size + at] = sums[r] + (at + 1 == x.size ? x.bias[output] : 0);
  }
}

cudaStream_t as_stream(void *stream) { return static_cast<cudaStream_t>(stream); }

} // namespace

extern "C" {

const char *thex_cuda_message(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

int thex_cuda_count(int *count) { return cudaGetDeviceCount(count); }

/// Name (of at most `capacity` bytes with its 0), compute capability, and memory of a GPU.
int thex_cuda_describe(uint32_t gpu, char *name, uint64_t capacity, int *major, int *minor, uint64_t *free_bytes,
                       uint64_t *total_bytes) {
  cudaDeviceProp properties;
  cudaError_t status = cudaGetDeviceProperties(&properties, gpu);
  if (status != cudaSuccess)
    return status;
  strncpy(name, properties.name, capacity);
  name[capacity - 1] = 0;
  *major = properties.major;
  *minor = properties.minor;
  status = cudaSetDevice(gpu);
  if (status != cudaSuccess)
    return status;
  return cudaMemGetInfo(free_bytes, total_bytes);
}

int thex_cuda_allocate(void *stream, void **out, uint64_t bytes) {
  return cudaMallocAsync(out, bytes, as_stream(stream));
}

int thex_cuda_release(void *stream, void *address) { return cudaFreeAsync(address, as_stream(stream)); }

int thex_cuda_upload(void *stream, void *to, const void *from, uint64_t bytes) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, as_stream(stream));
}

/// Waits for the copy, and so for all that was launched before.
int thex_cuda_download(void *stream, void *to, const void *from, uint64_t bytes) {
  cudaError_t status = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, as_stream(stream));
  return status != cudaSuccess ? status : cudaStreamSynchronize(as_stream(stream));
}

int thex_cuda_wait(void *stream) { return cudaStreamSynchronize(as_stream(stream)); }

int thex_cuda_gather(void *stream, word *out, const word *const *from, uint32_t count, uint32_t width) {
  gather<<<count, THREADS, 0, as_stream(stream)>>>(out, from, width);
  return cudaGetLastError();
}

int thex_cuda_fill_tables(void *stream, word *out, const int32_t *tables, const uint32_t *table_of, uint32_t count,
                          uint32_t masks, uint32_t size) {
  fill_tables<<<count, THREADS, 0, as_stream(stream)>>>(out, tables, table_of, masks, size);
  return cudaGetLastError();
}

int thex_cuda_multiply_tables(void *stream, word *out, const word *const *glwes, const int32_t *tables,
                              const uint32_t *table_of, uint32_t count, uint32_t polynomials, uint32_t entries,
                              uint32_t size) {
  const uint32_t shared = size * sizeof(word) + entries * sizeof(int32_t);
  cudaError_t status =
      cudaFuncSetAttribute(multiply_tables, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (status != cudaSuccess)
    return status;
  multiply_tables<<<dim3(count, polynomials), THREADS, shared, as_stream(stream)>>>(out, glwes, tables, table_of,
                                                                                   entries, size);
  return cudaGetLastError();
}

int thex_cuda_pack_sum(void *stream, word *out, const word *products, const word *lwes, const uint32_t *first,
                       const uint32_t *degrees, uint32_t glwes, uint32_t lwe_size, uint32_t polynomials,
                       uint32_t size) {
  pack_sum<<<glwes, THREADS, 0, as_stream(stream)>>>(out, products, lwes, first, degrees, lwe_size, polynomials, size);
  return cudaGetLastError();
}

int thex_cuda_linear(void *stream, word *out, const word *const *operands, const uint32_t *set, const int32_t *weights,
                     const word *bias, uint32_t groups, uint32_t outputs, uint32_t depth, uint32_t size) {
  const uint32_t tiles_of_rows = (outputs + ROWS - 1) / ROWS, tiles_of_words = (size + THREADS - 1) / THREADS;
  const uint64_t blocks = static_cast<uint64_t>(groups) * tiles_of_rows * tiles_of_words;
  if (blocks == 0)
    return cudaSuccess;
  if (blocks > INT32_MAX)
    return cudaErrorInvalidConfiguration;
  const Linear x = {out, operands, set, weights, bias, outputs, depth, size, tiles_of_rows, tiles_of_words};
  linear<<<static_cast<uint32_t>(blocks), THREADS, 0, as_stream(stream)>>>(x);
  return cudaGetLastError();
}
}
