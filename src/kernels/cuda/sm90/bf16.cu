#include "kernels/cuda/sm90/grouped_product.cuh"

namespace amoeba::kernels::cuda {

template const Products<device::bf16>& sm90_products<device::bf16>();

}  // namespace amoeba::kernels::cuda
