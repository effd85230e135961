// Run the text engine of a model directory: ids in, query tokens out. No vctool, no Python, no ONNX.
//
//   g++ -std=c++17 -O2 encode_text.cpp -o encode_text -I$TENSORRT/include -L$TENSORRT/lib -lnvinfer -I$CUDA/include -L$CUDA/lib64 -lcudart
//   ./encode_text MODEL/tensorrt/text.sm89.trt11.4.0.fp32.engine 101 1037 3899 102
//
// The ids are a sentence's, tokenized elsewhere (tokenizer.json is read by the `tokenizers` library in Rust, C and C++ alike). Check the
// JSON beside the engine before you load it: graph hash, TensorRT version, compute capability.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <vector>

struct Logger final : nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kERROR) std::fprintf(stderr, "TensorRT: %s\n", message);
    }
};

static void check(bool good, const char* what) {
    if (good) return;
    std::fprintf(stderr, "%s failed\n", what);
    std::exit(1);
}

// Device memory that knows how to go.
struct Device {
    void* at = nullptr;
    explicit Device(std::size_t bytes) { check(cudaMalloc(&at, bytes) == cudaSuccess, "cudaMalloc"); }
    ~Device() { cudaFree(at); }
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;
};

int main(int count, char** words) {
    check(count >= 3, "usage: encode_text ENGINE ID...");
    std::ifstream file(words[1], std::ios::binary);
    const std::vector<char> plan((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    check(!plan.empty(), "reading the engine");

    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
    check(runtime != nullptr, "createInferRuntime");
    std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    check(engine != nullptr, "loading the engine (another GPU or TensorRT than it was built for?)");
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
    check(context != nullptr, "createExecutionContext");

    // The padded length is the engine's; profile 0 is `interactive`, one query.
    const auto longest = engine->getProfileShape("input_ids", 0, nvinfer1::OptProfileSelector::kMAX);
    const std::int64_t length = longest.d[1];
    std::vector<std::int64_t> ids(length, 0), mask(length, 0);
    for (std::int64_t i = 0; i + 2 < count && i < length; ++i) {
        ids[i] = std::atoll(words[i + 2]);
        mask[i] = 1;
    }
    const nvinfer1::Dims2 shape(1, length);
    check(context->setInputShape("input_ids", shape) && context->setInputShape("attention_mask", shape), "setInputShape");
    const auto tokens = context->getTensorShape("query_tokens");  // 1, Q, D
    const std::size_t rows = tokens.d[1], width = tokens.d[2];
    std::vector<float> query(rows * width);
    std::unique_ptr<bool[]> counted(new bool[rows]);

    cudaStream_t stream;
    check(cudaStreamCreate(&stream) == cudaSuccess, "cudaStreamCreate");
    {
        Device d_ids(length * 8), d_mask(length * 8), d_query(query.size() * 4), d_counted(rows);
        cudaMemcpyAsync(d_ids.at, ids.data(), length * 8, cudaMemcpyHostToDevice, stream);
        cudaMemcpyAsync(d_mask.at, mask.data(), length * 8, cudaMemcpyHostToDevice, stream);
        check(context->setTensorAddress("input_ids", d_ids.at) && context->setTensorAddress("attention_mask", d_mask.at) &&
                  context->setTensorAddress("query_tokens", d_query.at) && context->setTensorAddress("query_mask", d_counted.at),
              "setTensorAddress");
        check(context->enqueueV3(stream), "enqueueV3");
        cudaMemcpyAsync(query.data(), d_query.at, query.size() * 4, cudaMemcpyDeviceToHost, stream);
        cudaMemcpyAsync(counted.get(), d_counted.at, rows, cudaMemcpyDeviceToHost, stream);
        check(cudaStreamSynchronize(stream) == cudaSuccess, "running the engine");
    }
    cudaStreamDestroy(stream);
    for (std::size_t row = 0; row < rows; ++row) {
        if (!counted[row]) continue;
        for (std::size_t i = 0; i < width; ++i) std::printf(i + 1 < width ? "%g " : "%g\n", query[row * width + i]);
    }
    return 0;
}
