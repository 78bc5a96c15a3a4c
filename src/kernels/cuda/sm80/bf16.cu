#include "kernels/cuda/sm80/grouped_product.cuh"

namespace amoeba::kernels::cuda {

template const Products<device::bf16>& sm80_products<device::bf16>();

}  // namespace amoeba::kernels::cuda
