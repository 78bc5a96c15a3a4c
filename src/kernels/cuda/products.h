// The four grouped products of the experts, as one table for each instruction set and element type.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/device/epilogues.cuh"

namespace amoeba::kernels::cuda {

struct ProductLaunch {
  bool mn_major_b = false;  // b is stored with the sum's index as its row
  int64_t max_tiles = 0;    // blocks of rows, by rows
  int multiprocessors = 0;
  cudaStream_t stream = nullptr;
};

template <typename T>
struct Products {
  using Product = device::GroupedProduct;
  using Rows = typename device::RowsEpilogue<T>::Params;
  using Up = device::UpParams<T>;
  using HiddenGradient = device::HiddenGradientParams<T>;
  using WeightGradient = typename device::WeightGradientEpilogue<T>::Params;

  // Whether rows of tokens may come with an index; otherwise they are gathered before.
  bool gathers = false;
  // Whether dz wants its gate and up in halves where the weights have them apart by column.
  bool halves = false;

  // By rows: a has the sum's columns in a row; b either way.
  void (*rows)(const Product& product, const Rows& epilogue, const ProductLaunch& launch);
  void (*up)(const Product& product, const Up& epilogue, const ProductLaunch& launch);
  void (*hidden_gradient)(const Product& product, const HiddenGradient& epilogue,
                          const ProductLaunch& launch);
  // By depth: a and b have the sum's index as their row.
  void (*weight_gradient)(const Product& product, const WeightGradient& epilogue,
                          const ProductLaunch& launch);
};

template <typename T>
const Products<T>& sm80_products();
template <typename T>
const Products<T>& sm90_products();

}  // namespace amoeba::kernels::cuda
