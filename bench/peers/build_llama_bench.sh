#!/bin/sh
# Builds llama-bench, the peer of `hadal bench decode --against llama.cpp`, for this processor:
#
#     bench/peers/build_llama_bench.sh CHECKOUT
#
# CHECKOUT is a checkout of llama.cpp; needs cmake and a C++ compiler with OpenMP. Prints where the
# program is. Release, -march=native, OpenMP: the fastest of what llama.cpp offers without another
# library.
set -eu
checkout=${1:?usage: build_llama_bench.sh CHECKOUT}
build=$checkout/build-bench
cmake -S "$checkout" -B "$build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_OPENMP=ON \
  -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
  -DLLAMA_BUILD_SERVER=OFF >&2
cmake --build "$build" --target llama-bench --parallel >&2
echo "$build/bin/llama-bench"
