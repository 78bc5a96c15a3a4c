#include "kernels/cuda/sm90/grouped_product.cuh"

namespace amoeba::kernels::cuda {

template const Products<device::fp16>& sm90_products<device::fp16>();

}  // namespace amoeba::kernels::cuda
