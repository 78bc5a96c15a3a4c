#include "kernels/cuda/sm80/grouped_product.cuh"

namespace amoeba::kernels::cuda {

template const Products<device::fp16>& sm80_products<device::fp16>();

}  // namespace amoeba::kernels::cuda
