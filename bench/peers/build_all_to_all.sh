#!/bin/sh
# Builds all_to_all, the peer of bench/all-to-all.ts, with Open MPI's mpicc (Debian: libopenmpi-dev gcc):
#
#     bench/peers/build_all_to_all.sh PROGRAM
set -eu
program=${1:?usage: build_all_to_all.sh PROGRAM}
mpicc -O3 -march=native -o "$program" "$(dirname "$0")/all_to_all.c"
