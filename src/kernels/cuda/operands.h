// From the contract's views to the matrices that the products read and write, and the reasons why
// a view cannot be one.
//
// Legend: D model width, H expert hidden width, E experts.
#pragma once

#include <string>

#include "kernels/cuda/device/matrix.cuh"
#include "kernels/problem.h"

namespace amoeba::kernels::cuda {

// A matrix of an expert as stored: the sum's columns in a row, or its index as the row.
struct Stored {
  device::Matrix matrix;
  bool transposed = false;  // rows are D (gate_up) or H (down) instead of 2H or D
  bool pairs = false;       // gate and up alternate inside a row
};

// Of both gate and up in the order of the kernels; the missing one of two gradients has data ==
// nullptr.
Stored stored_gate_up(const Matrix& first, const Matrix& second);
// The copy engine wants rising addresses: up comes first where it is stored before gate.
bool is_up_first(const Matrix& gate, const Matrix& up);
Stored stored_down(const Matrix& down);
device::Matrix stored_rows(const View& view);
device::Vector stored_bias(const Matrix& bias, const Matrix& up);

// "" when it can be read and written in 16-byte chunks, otherwise a sentence.
std::string refuse_gate_up(const char* name, const Matrix& gate, const Matrix& up);
std::string refuse_matrix(const char* name, const Matrix& matrix);
std::string refuse_rows(const char* name, const View& view);
std::string refuse_bias(const char* name, const Matrix& gate, const Matrix& up);

}  // namespace amoeba::kernels::cuda
