// Segment a photo with an exported model. Needs C++17 and OpenVINO; its PyPI package has headers and library:
//
//   mpformer export MODEL model.onnx --with_postprocessing
//   OV=$(python -c "import openvino; print(openvino.__path__[0])")
//   g++ -std=c++17 -O2 segment.cpp -I$OV/include $OV/libs/libopenvino.so.* -Wl,-rpath,$OV/libs -o segment
//   ./segment model.onnx photo.ppm [segments.pgm]
//
// Photos are binary PPM files of 8 bits (`magick photo.jpg -auto-orient -depth 8 photo.ppm`). Prints what was found.
// Each pixel of segments.pgm is the number of its printed line (0: none; 255: line 255 or later), at the size of the
// model's input. Photos get the size of the model's image processor, and are stretched to the next multiples of 32, or
// to the one size that the model was exported at.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <regex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <openvino/openvino.hpp>
#include <openvino/opsets/opset1.hpp>

using Settings = std::map<std::string, std::string>;  // JSON by name

// A number of protobuf: 7 bits a byte, the lowest first.
size_t read_number(const std::string& bytes, size_t& at) {
    size_t value = 0;
    for (int shift = 0; at < bytes.size(); shift += 7) {
        const unsigned char byte = bytes[at++];
        value |= size_t(byte & 127) << shift;
        if (byte < 128) break;
    }
    return value;
}

// Fields of bytes or texts of a protobuf message, by their numbers.
std::multimap<size_t, std::string> read_fields(const std::string& bytes) {
    std::multimap<size_t, std::string> fields;
    for (size_t at = 0; at < bytes.size();) {
        const size_t tag = read_number(bytes, at), value = read_number(bytes, at);
        if ((tag & 7) != 2) continue;  // a number
        fields.emplace(tag >> 3, bytes.substr(at, value));
        at += value;
    }
    return fields;
}

// The metadata of an ONNX file: field 14 of the model has pairs of name and value.
Settings read_settings(const std::string& file) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) throw std::runtime_error(file + " cannot be read");
    const std::string bytes((std::istreambuf_iterator<char>(stream)), {});
    Settings settings;
    const auto fields = read_fields(bytes);
    for (auto [field, end] = fields.equal_range(14); field != end; ++field) {
        const auto pair = read_fields(field->second);
        if (pair.count(1) && pair.count(2)) settings[pair.find(1)->second] = pair.find(2)->second;
    }
    for (const char* name : {"labels", "task", "threshold", "size", "do_resize", "resample", "multiple", "smallest_side"}) {
        if (!settings.count(name)) throw std::runtime_error(file + " is damaged, or was not made by mpformer export");
    }
    return settings;
}

// A number of a JSON text by its name, or else a default.
double number_of(const std::string& json, const std::string& name, double otherwise) {
    std::smatch found;
    const std::regex pattern("\"" + name + "\": *([0-9.]+)");
    return std::regex_search(json, found, pattern) ? std::stod(found[1]) : otherwise;
}

// Texts of a JSON list; control characters become spaces.
std::vector<std::string> texts_of(const std::string& json) {
    std::vector<std::string> texts;
    for (size_t i = 0; i < json.size(); ++i) {
        if (json[i] != '"') continue;
        std::string text;
        for (++i; i < json.size() && json[i] != '"'; ++i) {
            if (json[i] != '\\') {
                text += json[i];
                continue;
            }
            const char escaped = json[++i];
            if (escaped == 'u') i += 4;
            text += escaped == '"' || escaped == '\\' || escaped == '/' ? escaped : ' ';
        }
        texts.push_back(text);
    }
    return texts;
}

// Height and width of the model's input for a photo: the processor's size, rounded up to multiples of 32.
std::pair<size_t, size_t> input_size(const ov::PartialShape& shape, const Settings& settings, double height, double width) {
    if (shape[2].is_static()) return {shape[2].get_length(), shape[3].get_length()};
    const std::string size = settings.at("size");
    if (settings.at("do_resize") == "true") {
        const double none = std::numeric_limits<double>::infinity(), low = std::min(height, width), high = std::max(height, width);
        const double shortest = number_of(size, "shortest_edge", none), longest = number_of(size, "longest_edge", none);
        const double exact = std::min(shortest, longest * low / high), side = std::nearbyint(exact);
        const double other = side == low ? high : std::floor(exact * high / low);
        const bool is_tall = width < height;
        height = number_of(size, "height", is_tall ? other : side);
        width = number_of(size, "width", is_tall ? side : other);
    }
    const double multiple = std::stod(settings.at("multiple")), smallest = std::stod(settings.at("smallest_side"));
    const auto rounded = [=](double side) { return size_t(std::max(smallest, std::ceil(side / multiple) * multiple)); };
    return {rounded(height), rounded(width)};
}

ov::Tensor read_ppm(const std::string& file) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) throw std::runtime_error(file + " cannot be read");
    std::vector<std::string> words;  // kind, width, height, largest value
    for (std::string word; words.size() < 4 && stream >> word;) {
        if (word[0] == '#') std::getline(stream, word);  // a comment
        else words.push_back(word);
    }
    stream.get();
    const bool is_ppm = stream && words[0] == "P6" && words[3] == "255";
    const long width = is_ppm ? std::atol(words[1].c_str()) : 0, height = is_ppm ? std::atol(words[2].c_str()) : 0;
    if (width < 1 || height < 1 || width > 65535 || height > 65535) throw std::runtime_error(file + " is no binary PPM of 8 bits");
    ov::Tensor image(ov::element::u8, {1, size_t(height), size_t(width), 3});
    stream.read(reinterpret_cast<char*>(image.data<uint8_t>()), image.get_byte_size());
    if (!stream) throw std::runtime_error(file + " is cut off");
    return image;
}

// A photo `[1, height, width, 3]` at another size, `[1, 3, height, width]`, resized as Pillow does.
ov::Tensor resize(ov::Core& core, const ov::Tensor& photo, size_t height, size_t width, bool is_cubic) {
    const auto input = std::make_shared<ov::opset1::Parameter>(ov::element::u8, ov::Shape{1, 3, height, width});
    const auto output = std::make_shared<ov::opset1::Result>(input);
    ov::preprocess::PrePostProcessor steps(std::make_shared<ov::Model>(ov::ResultVector{output}, ov::ParameterVector{input}));
    steps.input().tensor().set_layout("NHWC").set_shape(photo.get_shape());
    steps.input().model().set_layout("NCHW");
    steps.input().preprocess().resize(is_cubic ? ov::preprocess::ResizeAlgorithm::RESIZE_BICUBIC_PILLOW
                                               : ov::preprocess::ResizeAlgorithm::RESIZE_BILINEAR_PILLOW);
    ov::InferRequest request = core.compile_model(steps.build(), "CPU").create_infer_request();
    request.set_input_tensor(photo);
    request.infer();
    return request.get_output_tensor();
}

struct Row {
    std::string label;
    float score;
    std::vector<size_t> pixels;
};

// What was found; scores are -1 in semantic segmentation.
std::vector<Row> rows_of(ov::InferRequest& request, const Settings& settings, double threshold) {
    const std::vector<std::string> labels = texts_of(settings.at("labels"));
    std::vector<Row> rows;
    if (settings.at("task") == "\"semantic\"") {
        const ov::Tensor map = request.get_tensor("segmentation");
        for (const std::string& label : labels) rows.push_back({label, -1, {}});
        for (size_t i = 0; i < map.get_size(); ++i) rows[map.data<int64_t>()[i]].pixels.push_back(i);
        rows.erase(std::remove_if(rows.begin(), rows.end(), [](const Row& row) { return row.pixels.empty(); }), rows.end());
        return rows;
    }
    const bool is_instance = settings.at("task") == "\"instance\"";
    const ov::Tensor scores = request.get_tensor("scores"), classes = request.get_tensor("labels");
    const ov::Tensor segments = request.get_tensor(is_instance ? "masks" : "segmentation");
    const size_t count = scores.get_size(), area = segments.get_size() / (is_instance ? count : 1);
    for (size_t i = 0; i < count; ++i) {
        const float score = scores.data<float>()[i];
        if (score <= 0 || score < threshold) continue;
        Row row{labels[classes.data<int64_t>()[i]], score, {}};
        for (size_t p = 0; p < area; ++p) {
            const bool there = is_instance ? static_cast<const uint8_t*>(segments.data())[i * area + p] != 0
                                           : segments.data<int64_t>()[p] == int64_t(i + 1);
            if (there) row.pixels.push_back(p);
        }
        rows.push_back(std::move(row));
    }
    return rows;
}

int segment(int argc, char** argv) {
    if (argc < 3) throw std::runtime_error("usage: segment model.onnx photo.ppm [segments.pgm]");
    const Settings settings = read_settings(argv[1]);
    const std::string resample = settings.at("resample");
    if (resample != "2" && resample != "3") throw std::runtime_error("resizing must be bilinear or bicubic (resample 2 or 3)");
    ov::Core core;
    const std::shared_ptr<ov::Model> model = core.read_model(argv[1]);
    if (!model->input().get_names().count("image")) throw std::runtime_error("export the model --with_postprocessing");
    const ov::Tensor photo = read_ppm(argv[2]);
    const ov::Shape shape = photo.get_shape();
    const auto [height, width] = input_size(model->input().get_partial_shape(), settings, shape[1], shape[2]);
    ov::CompiledModel compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
    ov::InferRequest request = compiled.create_infer_request();
    request.set_input_tensor(resize(core, photo, height, width, resample == "3"));
    request.infer();
    const std::vector<Row> rows = rows_of(request, settings, std::stod(settings.at("threshold")));
    std::vector<uint8_t> map(height * width, 0);
    for (size_t i = rows.size(); i-- > 0;) {  // the best ones, which come first, are on top
        for (size_t pixel : rows[i].pixels) map[pixel] = uint8_t(std::min<size_t>(i + 1, 255));
    }
    for (const Row& row : rows) {
        const double share = 100.0 * row.pixels.size() / double(height * width);
        if (row.score < 0) std::printf("%s\t\t%.1f%% of the image\n", row.label.c_str(), share);
        else std::printf("%s\t%.3f\t%.1f%% of the image\n", row.label.c_str(), row.score, share);
    }
    if (rows.empty()) std::puts("no instance has a score above the threshold");
    if (argc > 3) {
        std::ofstream file(argv[3], std::ios::binary);
        file << "P5\n" << width << " " << height << "\n255\n";
        file.write(reinterpret_cast<const char*>(map.data()), map.size());
        if (!file.flush()) throw std::runtime_error(std::string(argv[3]) + " cannot be written");
    }
    return 0;
}

int main(int argc, char** argv) {
    try {
        return segment(argc, argv);
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << "\n";
        return 1;
    }
}
