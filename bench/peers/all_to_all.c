/*
 * The peer of bench/all-to-all.ts: the same exchange in C. Every rank has a buffer with an equal part
 * for each rank and receives one from each, by MPI_Alltoallv, which is given counts as ours is.
 *
 *     mpirun -np 2 all_to_all BYTES ITERATIONS BATCHES
 *
 * BYTES is a rank's payload, its own part included. Rank 0 prints a line a batch: microseconds of one
 * exchange, the mean of the batch's ITERATIONS.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
  int rank, size;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (argc != 4) {
    if (rank == 0) fprintf(stderr, "usage: all_to_all BYTES ITERATIONS BATCHES\n");
    MPI_Finalize();
    return 2;
  }
  const int part = atoi(argv[1]) / size;
  const int iterations = atoi(argv[2]), batches = atoi(argv[3]);
  char *source = malloc((size_t)part * size), *target = malloc((size_t)part * size);
  int *counts = malloc(sizeof(int) * size), *offsets = malloc(sizeof(int) * size);
  for (int peer = 0; peer < size; peer++) {
    counts[peer] = part;
    offsets[peer] = part * peer;
    memset(source + (size_t)part * peer, 16 * rank + peer, part);
  }
  memset(target, 0, (size_t)part * size);
  for (int batch = -1; batch < batches; batch++) {
    MPI_Barrier(MPI_COMM_WORLD);
    const double start = MPI_Wtime();
    for (int index = 0; index < iterations; index++) {
      MPI_Alltoallv(source, counts, offsets, MPI_BYTE, target, counts, offsets, MPI_BYTE,
                    MPI_COMM_WORLD);
    }
    const double seconds = (MPI_Wtime() - start) / iterations;
    /* The first batch touches memory. */
    if (rank == 0 && batch >= 0) printf("%.3f\n", 1e6 * seconds);
  }
  for (int peer = 0; peer < size; peer++) {
    if (target[(size_t)part * peer + part - 1] != (char)(16 * peer + rank)) {
      fprintf(stderr, "rank %d has other bytes than rank %d sent\n", rank, peer);
      MPI_Abort(MPI_COMM_WORLD, 1);
    }
  }
  MPI_Finalize();
  return 0;
}
