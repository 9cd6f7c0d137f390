#include "data/sentencepiece.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

using sentencepiece::SentencePieceProcessor;
using sentencepiece::util::Status;

namespace {

// What the library answers with an allocation is asked once, when a refusal can still be told.
struct Opened {
    SentencePieceProcessor processor;
    std::vector<std::pair<const char *, sp_kind>> pieces;
    int bos, eos, unk, pad;

    void ask()
    {
        int n = processor.GetPieceSize();
        pieces.reserve(static_cast<size_t>(n));
        for (int id = 0; id < n; id++) {
            sp_kind kind = processor.IsControl(id)   ? SP_CONTROL
                           : processor.IsUnknown(id) ? SP_UNKNOWN
                           : processor.IsByte(id)    ? SP_BYTE
                                                     : SP_NORMAL;
            pieces.emplace_back(processor.IdToPiece(id).c_str(), kind);
        }
        bos = processor.bos_id();
        eos = processor.eos_id();
        unk = processor.unk_id();
        pad = processor.pad_id();
    }
};

const Opened *opened(const void *sp)
{
    return static_cast<const Opened *>(sp);
}

// The library's messages carry its source position ("src/x.cc(12) [condition] text"): keep the text, on one line.
bool failed(sp_reason *why, const char *text)
{
    const char *bracket = std::strstr(text, "] ");
    if (std::strstr(text, ".cc(") && bracket && bracket[2]) text = bracket + 2;
    std::snprintf(why->text, sizeof why->text, "%s", text);
    for (char *c = why->text; *c; c++)
        if (static_cast<unsigned char>(*c) < ' ') *c = ' ';
    return false;
}

bool passed(const Status &status, sp_reason *why)
{
    return status.ok() ? true : failed(why, status.error_message());
}

template <typename Call> bool guarded(sp_reason *why, Call call)
{
    try {
        return call();
    } catch (const std::bad_alloc &) {
        return failed(why, "no memory");
    } catch (const std::exception &e) {
        return failed(why, e.what());
    } catch (...) {
        return failed(why, "unknown exception");
    }
}

char *copy(const std::string &s)
{
    char *text = static_cast<char *>(std::malloc(s.size() + 1));
    if (!text) throw std::bad_alloc();
    std::memcpy(text, s.c_str(), s.size() + 1);
    return text;
}

class Lines : public sentencepiece::SentenceIterator {
public:
    explicit Lines(const sp_training *t) : t_(t) { read(); }
    bool done() const override { return i_ >= t_->lines; }
    void Next() override
    {
        i_++;
        read();
    }
    const std::string &value() const override { return value_; }
    Status status() const override { return Status(); }

private:
    void read()
    {
        if (done()) return;
        sp_line line = t_->line(t_->context, i_);
        value_.assign(line.text, static_cast<size_t>(line.bytes));
    }
    const sp_training *t_;
    long i_ = 0;
    std::string value_;
};

} // namespace

void *sp_open(const void *model, long bytes, sp_reason *why)
{
    Opened *sp = nullptr;
    bool ok = guarded(why, [&] {
        sp = new Opened();
        if (bytes > INT_MAX) return failed(why, "the file is too large");
        const char *data = static_cast<const char *>(model);
        if (!passed(sp->processor.LoadFromSerializedProto({data, static_cast<size_t>(bytes)}), why)) return false;
        sp->ask();
        return true;
    });
    if (ok) return sp;
    delete sp;
    return nullptr;
}

void sp_close(void *sp)
{
    delete static_cast<Opened *>(sp);
}

long sp_pieces(const void *sp)
{
    return static_cast<long>(opened(sp)->pieces.size());
}

void sp_special(const void *sp, int *bos, int *eos, int *unk, int *pad)
{
    *bos = opened(sp)->bos;
    *eos = opened(sp)->eos;
    *unk = opened(sp)->unk;
    *pad = opened(sp)->pad;
}

const char *sp_piece(const void *sp, int id, sp_kind *kind)
{
    const std::pair<const char *, sp_kind> &piece = opened(sp)->pieces[static_cast<size_t>(id)];
    *kind = piece.second;
    return piece.first;
}

int sp_find(const void *sp, const char *piece)
{
    const auto &pieces = opened(sp)->pieces; // the library's own search may allocate
    for (size_t id = 0; id < pieces.size(); id++)
        if (std::strcmp(pieces[id].first, piece) == 0) return static_cast<int>(id);
    return -1;
}

bool sp_encode(int **ids, long *n, long *room, const void *sp, const char *text, long bytes, sp_reason *why)
{
    return guarded(why, [&] {
        if (bytes > INT_MAX / 8) return failed(why, "the text is too long to be encoded at once");
        std::vector<int> out;
        if (!passed(opened(sp)->processor.Encode({text, static_cast<size_t>(bytes)}, &out), why)) return false;
        long more = static_cast<long>(out.size());
        if (*n + more > *room) {
            long grown = *n + more + *room / 2;
            int *larger = static_cast<int *>(std::realloc(*ids, sizeof(int) * static_cast<size_t>(grown)));
            if (!larger) throw std::bad_alloc();
            *ids = larger;
            *room = grown;
        }
        if (more) std::memcpy(*ids + *n, out.data(), sizeof(int) * out.size());
        *n += more;
        return true;
    });
}

bool sp_decode(char **text, long *bytes, const void *sp, const int *ids, long n, sp_reason *why)
{
    return guarded(why, [&] {
        std::string out;
        if (!passed(opened(sp)->processor.Decode(std::vector<int>(ids, ids + n), &out), why)) return false;
        *text = copy(out);
        *bytes = static_cast<long>(out.size());
        return true;
    });
}

bool sp_train(char **model, long *bytes, const sp_training *t, sp_reason *why)
{
    return guarded(why, [&] {
        Lines lines(t);
        std::string out;
        Status status = sentencepiece::SentencePieceTrainer::Train(
            {{"minloglevel", "3"}, // only what aborts
             {"model_type", "bpe"},
             {"vocab_size", std::to_string(t->vocab_size)},
             {"character_coverage", "1.0"},
             {"num_threads", std::to_string(t->threads)},
             {"byte_fallback", "true"},
             {"normalization_rule_name", "identity"},
             {"remove_extra_whitespaces", "false"},
             {"add_dummy_prefix", "true"},
             {"split_digits", "true"},
             {"max_sentence_length", "1000000000"},
             {"unk_id", "0"},
             {"bos_id", "1"},
             {"eos_id", "2"},
             {"pad_id", "-1"}},
            &lines, &out);
        if (!passed(status, why)) return false;
        *model = copy(out);
        *bytes = static_cast<long>(out.size());
        return true;
    });
}
