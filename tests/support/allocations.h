// Counts what `operator new` gives to this thread, and can make one of those calls fail. A binary
// that uses it has its own operator new.
#pragma once

#include <cstdint>

namespace amoeba::test {

class HostAllocations {
 public:
  HostAllocations();  // counts from here on, on this thread
  ~HostAllocations();
  HostAllocations(const HostAllocations&) = delete;
  HostAllocations& operator=(const HostAllocations&) = delete;

  // Call number `index`, from 0, throws std::bad_alloc; once.
  void fail_at(int64_t index) { fail_at_ = index; }

  int64_t num_calls() const { return num_calls_; }
  int64_t live_bytes() const { return live_bytes_; }  // less what was there before and is freed
  int64_t peak_bytes() const { return peak_bytes_; }

  // Called by operator new and delete.
  bool admit();
  void add(int64_t bytes);

 private:
  HostAllocations* outer_;
  int64_t fail_at_ = -1, num_calls_ = 0, live_bytes_ = 0, peak_bytes_ = 0;
};

}  // namespace amoeba::test
