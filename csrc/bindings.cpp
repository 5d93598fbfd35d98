// The Python module: parameter structs to fill in, and functions that accept them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/dispatch.h"
#include "cpu/memory.h"
#include "cpu/reduction.h"
#include "divergences/visit.h"
#include "params.h"
#if defined(FASTKD_CUDA)
#include "cuda/api.h"
#endif

namespace py = pybind11;
using namespace fastkd;

namespace {

#if defined(FASTKD_CUDA)
constexpr bool kBuiltWithCuda = true;

void check(const char* error) {
  if (error != nullptr) throw std::runtime_error(std::string("fastkd CUDA kernel: ") + error);
}
#else
constexpr bool kBuiltWithCuda = false;
#endif

Rows make_rows(uintptr_t data, Dtype dtype, int64_t outer_stride, int64_t inner_stride, int64_t column_stride,
               int64_t columns) {
  return {reinterpret_cast<void*>(data), dtype, outer_stride, inner_stride, column_stride, columns};
}

// The arithmetic of a call, which stays the same from one call to the next.
DenseParams make_arithmetic(Divergence divergence, double alpha, double beta, double temperature,
                            double teacher_temperature, double kd_weight, double kd_metric, double ce_weight,
                            double label_smoothing, double z_loss, int64_t ignore_index, int64_t vocab) {
  DenseParams p;
  p.vocab = vocab;
  p.divergence = divergence;
  p.alpha = alpha;
  p.beta = beta;
  p.temperature = temperature;
  p.teacher_temperature = teacher_temperature;
  p.kd_weight = kd_weight;
  p.kd_metric = kd_metric;
  p.ce_weight = ce_weight;
  p.label_smoothing = label_smoothing;
  p.z_loss = z_loss;
  p.ignore_index = ignore_index;
  return p;
}

// The arithmetic with the tensors of one call.
DenseParams of_call(const DenseParams& arithmetic, int64_t rows, int64_t inner, const Rows& student,
                    const Rows& teacher, const Rows& grad_student, const Rows& grad_teacher, uintptr_t labels,
                    uintptr_t loss_scale, uintptr_t grad_scale, uintptr_t row_loss, uintptr_t metrics,
                    uintptr_t coefficient, uintptr_t record, bool wide, Phase phase, bool sharded,
                    int cluster, int cluster_rows) {
  DenseParams p = arithmetic;
  p.rows = rows;
  p.inner = inner;
  p.student = student;
  p.teacher = teacher;
  p.grad_student = grad_student;
  p.grad_teacher = grad_teacher;
  p.labels = reinterpret_cast<const int64_t*>(labels);
  p.loss_scale = reinterpret_cast<const void*>(loss_scale);
  p.grad_scale = reinterpret_cast<const void*>(grad_scale);
  p.row_loss = reinterpret_cast<void*>(row_loss);
  p.metrics = reinterpret_cast<void*>(metrics);
  p.coefficient = reinterpret_cast<const void*>(coefficient);
  p.record = reinterpret_cast<double*>(record);
  p.wide = wide;
  p.phase = phase;
  p.sharded = sharded;
  p.cluster = cluster;
  p.cluster_rows = cluster_rows;
  return p;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  py::enum_<Dtype>(m, "Dtype")
      .value("float32", Dtype::kFloat32)
      .value("bfloat16", Dtype::kBFloat16)
      .value("float16", Dtype::kFloat16)
      .value("float64", Dtype::kFloat64);
  py::enum_<Divergence>(m, "Divergence")
#define FASTKD_VALUE(name, Functor, arguments) .value(#name, Divergence::k##Functor)
      FASTKD_DIVERGENCES(FASTKD_VALUE);
#undef FASTKD_VALUE
  // The functor's traits, which native.py compares with the object in fastkd.divergences.
  m.def("divergence_traits", [](Divergence divergence, double alpha, double beta) {
    py::dict traits;
    visit_divergence(divergence, alpha, beta, [&](const auto& functor) {
      using Functor = std::decay_t<decltype(functor)>;
      py::list streams;
      for (int k = 0; k < Functor::kStreams; ++k) {
        streams.append(py::make_tuple(functor.teacher_power(k), functor.student_power(k)));
      }
      traits["streams"] = py::tuple(streams);
      traits["cross"] = Functor::kCross;
      traits["sums"] = Functor::kSums > 0;
      traits["distant"] = Functor::kDistant;
      traits["splits_label"] = Functor::kSplitsLabel;
    });
    return traits;
  });
  py::enum_<Phase>(m, "Phase")
      .value("all", Phase::kAll)
      .value("statistics", Phase::kStatistics)
      .value("sums", Phase::kSums)
      .value("distant", Phase::kDistant)
      .value("finish", Phase::kFinish);
  py::enum_<Tail>(m, "Tail")
      .value("renormalize", Tail::kRenormalize)
      .value("bucket", Tail::kBucket)
      .value("drop", Tail::kDrop);
#define FASTKD_NAME(enumerator, name) #name,
  m.attr("RECORD_COLUMNS") =
      py::tuple(py::cast(std::vector<std::string>{FASTKD_RECORD_COLUMNS(FASTKD_NAME)}));
  m.attr("METRIC_COLUMNS") =
      py::tuple(py::cast(std::vector<std::string>{FASTKD_METRIC_COLUMNS(FASTKD_NAME)}));
#undef FASTKD_NAME

  m.attr("CUDA_MAX_ENTRIES") = +SparseTeacher::kMaxEntriesOnGpu;
  m.attr("CLUSTER_NONE") = 0;
  m.attr("CLUSTER_CHOSEN") = +DenseParams::kChoose;
  m.attr("CLUSTER_ANY") = +DenseParams::kCluster;

  py::class_<Rows>(m, "Rows").def(py::init(&make_rows), py::arg("data"), py::arg("dtype"),
                                  py::arg("outer_stride"), py::arg("inner_stride"), py::arg("column_stride"),
                                  py::arg("columns"));

  py::class_<DenseParams>(m, "DenseParams")
      .def(py::init(&make_arithmetic), py::kw_only(), py::arg("divergence"), py::arg("alpha"),
           py::arg("beta"), py::arg("temperature"), py::arg("teacher_temperature"), py::arg("kd_weight"),
           py::arg("kd_metric"), py::arg("ce_weight"), py::arg("label_smoothing"), py::arg("z_loss"),
           py::arg("ignore_index"), py::arg("vocab"))
      .def("of_call", &of_call, py::kw_only(), py::arg("rows"), py::arg("inner"), py::arg("student"),
           py::arg("teacher"), py::arg("grad_student"), py::arg("grad_teacher"), py::arg("labels"),
           py::arg("loss_scale"), py::arg("grad_scale"), py::arg("row_loss"), py::arg("metrics"),
           py::arg("coefficient"), py::arg("record"), py::arg("wide"), py::arg("phase"), py::arg("sharded"),
           py::arg("cluster"), py::arg("cluster_rows"))
      .def(
          "set_sparse",
          [](DenseParams& p, uintptr_t indices, uintptr_t logprobs, uintptr_t grad, int64_t entries,
             Tail tail, Divergence divergence, bool has_rest, double class_temperature, double most_mass) {
            p.sparse = {reinterpret_cast<const int64_t*>(indices),
                        reinterpret_cast<const void*>(logprobs),
                        reinterpret_cast<void*>(grad),
                        entries,
                        tail,
                        divergence,
                        has_rest,
                        class_temperature,
                        most_mass};
          },
          py::kw_only(), py::arg("indices"), py::arg("logprobs"), py::arg("grad"), py::arg("entries"),
          py::arg("tail"), py::arg("divergence"), py::arg("has_rest"), py::arg("class_temperature"),
          py::arg("most_mass"));

  py::class_<ScaleParams>(m, "ScaleParams")
      .def(py::init([](int64_t rows, int64_t inner, const Rows& grad, const Rows& out, uintptr_t factor,
                       int64_t factor_stride, bool wide) {
             return ScaleParams{rows,          inner, grad, out, reinterpret_cast<const void*>(factor),
                                factor_stride, wide};
           }),
           py::kw_only(), py::arg("rows"), py::arg("inner"), py::arg("grad"), py::arg("out"),
           py::arg("factor"), py::arg("factor_stride"), py::arg("wide"));

  py::enum_<Scalar>(m, "Scalar")
      .value("float32", Scalar::kFloat32)
      .value("float64", Scalar::kFloat64)
      .value("bfloat16", Scalar::kBFloat16)
      .value("float16", Scalar::kFloat16)
      .value("int64", Scalar::kInt64)
      .value("int32", Scalar::kInt32)
      .value("bool", Scalar::kBool);
  py::enum_<WeightParams::Divisor>(m, "Divisor")
      .value("factor", WeightParams::Divisor::kFactor)
      .value("sum", WeightParams::Divisor::kSum)
      .value("items", WeightParams::Divisor::kItems);
  // Without names for its arguments, which would cost as much time as the rest of a small call.
  py::class_<WeightParams>(m, "WeightParams")
      .def(py::init([](int64_t rows, uintptr_t labels, int64_t ignore_index, uintptr_t token_weights,
                       Scalar token_weights_type, WeightParams::Divisor divisor, double factor,
                       uintptr_t items, Scalar items_type, uintptr_t weights, bool wide) {
        return WeightParams{rows,
                            reinterpret_cast<const int64_t*>(labels),
                            ignore_index,
                            {reinterpret_cast<const void*>(token_weights), token_weights_type},
                            divisor,
                            factor,
                            {reinterpret_cast<const void*>(items), items_type},
                            reinterpret_cast<void*>(weights),
                            wide};
      }));

  py::class_<TotalsParams>(m, "TotalsParams")
      .def(py::init([](int64_t rows, uintptr_t row_loss, uintptr_t metrics, uintptr_t loss_scale,
                       uintptr_t loss, uintptr_t means, bool wide) {
        return TotalsParams{rows,
                            reinterpret_cast<const void*>(row_loss),
                            reinterpret_cast<const void*>(metrics),
                            reinterpret_cast<const void*>(loss_scale),
                            reinterpret_cast<void*>(loss),
                            reinterpret_cast<void*>(means),
                            wide};
      }));

  py::class_<cpu::Block>(m, "CpuBlock", py::buffer_protocol())
      .def(py::init<int64_t>(), py::arg("bytes"))
      .def_buffer([](cpu::Block& block) {
        return py::buffer_info(static_cast<uint8_t*>(block.data()), static_cast<py::ssize_t>(block.bytes()));
      });
  m.def("cpu_kept_bytes", &cpu::kept_bytes);
  m.def("cpu_keep_at_most", &cpu::keep_at_most, py::arg("limit"));
  m.def("cpu_isas", &cpu::isas);
  m.def(
      "cpu_advise_huge_pages",
      [](uintptr_t data, int64_t bytes) { cpu::advise_huge_pages(reinterpret_cast<void*>(data), bytes); },
      py::arg("data"), py::arg("bytes"));
  m.def(
      "cpu_first_bad_label",
      [](uintptr_t labels, int64_t rows, int64_t total, int64_t ignore_index) {
        return cpu::first_bad_label(reinterpret_cast<const int64_t*>(labels), rows, total, ignore_index);
      },
      py::arg("labels"), py::arg("rows"), py::arg("total"), py::arg("ignore_index"));
  m.def("cpu_row_weights", &cpu::row_weights);
  m.def("cpu_totals", &cpu::totals);
  m.def("cpu_dense_rows", &cpu::dense_rows, py::arg("params"), py::arg("isa"), py::arg("threads"),
        py::call_guard<py::gil_scoped_release>());
  m.def("cpu_scale_rows", &cpu::scale_rows, py::arg("params"), py::arg("isa"), py::arg("threads"),
        py::call_guard<py::gil_scoped_release>());

  m.attr("built_with_cuda") = kBuiltWithCuda;
#if defined(FASTKD_CUDA)
  m.attr("cuda_version") = FASTKD_CUDA;
  m.def("cuda_missing", [](int device) -> py::object {
    const char* reason = cuda::missing(device);
    return reason == nullptr ? py::object(py::none()) : py::object(py::str(reason));
  });
  m.def(
      "cuda_dense_rows",
      [](const DenseParams& params, int device, uintptr_t stream) {
        check(cuda::dense_rows(params, device, reinterpret_cast<void*>(stream)));
      },
      py::arg("params"), py::arg("device"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "cuda_scale_rows",
      [](const ScaleParams& params, int device, uintptr_t stream) {
        check(cuda::scale_rows(params, device, reinterpret_cast<void*>(stream)));
      },
      py::arg("params"), py::arg("device"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "cuda_row_weights",
      [](const WeightParams& params, int device, uintptr_t stream) {
        check(cuda::row_weights(params, device, reinterpret_cast<void*>(stream)));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "cuda_totals",
      [](const TotalsParams& params, int device, uintptr_t stream) {
        check(cuda::totals(params, device, reinterpret_cast<void*>(stream)));
      },
      py::call_guard<py::gil_scoped_release>());
#endif
}
