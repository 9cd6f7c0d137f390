// What `skymoe plan --json` prints, and its picture.
#include <math.h>
#include <stdio.h>

#include "base/files.h"
#include "cli/chart.h"
#include "cli/command.h"
#include "cli/plan.h"

static const char *const levels[] = {"none", "moe", "full"};

static void put_layout(struct json_out *o, const struct run *r)
{
    const struct layout *l = &r->layout;
    json_begin(o, "layout", '{');
    json_put_long(o, "devices", layout_ranks(l));
    json_put_long(o, "pipeline", l->pp);
    json_put_long(o, "data", l->dp);
    json_put_long(o, "tensor", l->tp);
    json_put_long(o, "expert", l->ep);
    json_put_long(o, "expert_tensor", l->etp);
    json_put_long(o, "virtual_stages", l->virtual_stages);
    json_put_text(o, "schedule", pipeline_kind_name(r->schedule));
    json_put_text(o, "recompute", levels[r->recompute]);
    json_end(o, '}');
}

static void put_stages(struct json_out *o, const struct plan *p)
{
    json_begin(o, "stages", '[');
    for (long i = 0; i < p->run.layout.pp; i++) {
        const struct stage_plan *s = &p->stage[i];
        json_begin(o, NULL, '{');
        json_put_long(o, "layers", s->layers);
        json_put_long(o, "recompute", s->recompute);
        json_put_real(o, "memory_bytes", memory_total(&s->bytes));
        json_put_real(o, "time_s", s->busy_s);
        json_put_real(o, "forward_s", s->forward_s);
        json_put_real(o, "backward_s", s->backward_s);
        json_end(o, '}');
    }
    json_end(o, ']');
}

static void put_plan(struct json_out *o, const struct plan *p, double published)
{
    char text[ASSUMPTION_TEXT];
    const char *said;
    double devices = (double)layout_ranks(&p->run.layout), tokens = (double)(p->run.global_batch * p->run.S);
    put_layout(o, &p->run);
    json_put_bool(o, "fits", p->fits);
    json_put_real(o, "over_bytes", p->over_bytes);
    put_stages(o, p);
    json_put_long(o, "micro_batches", p->micro_batches);
    json_put_real(o, "bubble", p->bubble);
    json_put_real(o, "step_time_s", p->step_s);
    json_put_real(o, "tokens_per_s", p->tokens_per_s);
    json_put_real(o, "tokens_per_s_per_device", p->tokens_per_s / devices);
    json_put_real(o, "mfu", p->mfu);
    json_begin(o, "terms", '{');
    for (int t = 0; t < TERMS; t++) json_put_real(o, term_name((enum term)t), p->terms.t[t]);
    json_end(o, '}');
    json_begin(o, "assumptions", '[');
    for (long i = 0; (said = plan_assumption(text, &p->run, i)); i++) json_put_text(o, NULL, said);
    json_end(o, ']');
    json_put_real(o, "unexplained", published > 0 ? tokens / published - p->step_s : NAN);
}

static void put_search(struct json_out *o, const struct search_result *s)
{
    json_begin(o, "search", '{');
    json_put_long(o, "tried", s->tried);
    json_put_long(o, "fitting", s->fitting);
    json_begin(o, "best", '[');
    for (long i = 0; i < s->n; i++) {
        json_begin(o, NULL, '{');
        put_layout(o, &s->best[i].run);
        json_put_real(o, "step_time_s", s->best[i].seconds);
        json_put_real(o, "memory_bytes", s->best[i].bytes);
        json_end(o, '}');
    }
    json_end(o, ']');
    json_end(o, '}');
}

enum status plan_print_json(const struct plan *p, const struct search_result *s, const struct plan *other,
                            double published)
{
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    put_plan(&o, p, published);
    json_put_real(&o, "flops_per_token", config_train_flops_per_token(p->run.c, p->run.S));
    if (s) put_search(&o, s);
    if (other) {
        json_begin(&o, "compare", '{');
        put_plan(&o, other, 0);
        json_put_real(&o, "flops_per_token", config_train_flops_per_token(other->run.c, other->run.S));
        json_end(&o, '}');
    }
    json_end(&o, '}');
    return command_print_json(&o);
}

// ---- SVG ----

enum { WIDE = 1000, ROW = 22, LEFT = 60, TOP = 34, MOST_BARS = 6000 };

// Bars until this time are drawn: all, or as much as keeps the file small.
static double drawn_until(const struct plan *p)
{
    long bars = 0, each = MOST_BARS / p->run.layout.pp;
    double until = p->pipeline_s;
    for (long i = 0; i < p->run.layout.pp; i++) {
        bars += p->sim.events_n[i];
        if (p->sim.events_n[i] > each && p->sim.events[i][each].start < until) until = p->sim.events[i][each].start;
    }
    return bars > MOST_BARS ? until : p->pipeline_s;
}

static void put_bars(struct markup *m, const struct plan *p, long stage, double scale, double until)
{
    static const char *const class[] = {"f", "b", "b", "w"};
    for (long i = 0; i < p->sim.events_n[stage]; i++) {
        const struct event *e = &p->sim.events[stage][i];
        if (e->end > until) break;
        double x = LEFT + e->start * scale, width = (e->end - e->start) * scale;
        markup_print(m, "<rect class=\"%s%s\" x=\"%.2f\" y=\"%ld\" width=\"%.2f\" height=\"%d\"/>\n",
                     class[e->action.kind],
                     e->action.chunk % 2 ? "2" : "", x, TOP + stage * ROW, width, ROW - 4);
        if (width >= 9)
            markup_print(m, "<text class=\"n\" x=\"%.2f\" y=\"%ld\">%ld</text>\n", x + width / 2,
                         TOP + stage * ROW + 13,
                         e->action.micro);
    }
}

static void put_style(struct markup *m)
{
    markup_print(m, "<style>text{font:11px sans-serif;fill:#333}.n{font-size:9px;text-anchor:middle;fill:#fff}"
                    "rect{stroke:#fff;stroke-width:.5}.bg{fill:#fff;stroke:none}.row{fill:#e8e8e8;stroke:none}"
                    ".f{fill:#2166ac}.f2{fill:#5aa1d8}.b{fill:#b2621b}.b2{fill:#dd9a5b}.w{fill:#4d8f4d}</style>\n");
}

enum status plan_svg(const struct plan *p, const char *path)
{
    struct markup m = {0};
    long stages = p->run.layout.pp, height = TOP + stages * ROW + 24;
    double until = drawn_until(p), scale = until > 0 ? (WIDE - LEFT - 10) / until : 0;
    markup_print(&m, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %ld\" width=\"%d\" height=\"%ld\">\n",
                 WIDE,
                 height, WIDE, height);
    put_style(&m);
    markup_print(&m, "<rect class=\"bg\" width=\"%d\" height=\"%ld\"/>\n<text x=\"%d\" y=\"20\">%s, %ld stages, %ld "
                     "micro-batches: bubble %.1f %%</text>\n", WIDE, height, LEFT, pipeline_kind_name(p->run.schedule),
                 stages, p->micro_batches, 100 * p->bubble);
    for (long i = 0; i < stages; i++) {
        markup_print(&m,
                     "<text x=\"6\" y=\"%ld\">stage %ld</text>\n<rect class=\"row\" x=\"%d\" y=\"%ld\" width=\"%.2f\" "
                         "height=\"%d\"/>\n", TOP + i * ROW + 13, i, LEFT, TOP + i * ROW, until * scale, ROW - 4);
        put_bars(&m, p, i, scale, until);
    }
    markup_print(&m,
                 "<text x=\"%d\" y=\"%ld\">0 to %.4g of %.4g s. Blue: forward; orange: backward%s; grey: idle</text>\n"
                     "</svg>\n", LEFT, height - 8, until, p->pipeline_s,
                 p->run.schedule == PIPELINE_ZERO_BUBBLE ? " of inputs; green: of weights" : "");
    enum status status = markup_status(&m);
    if (status == OK) status = file_write(path, m.text, m.used);
    markup_free(&m);
    return status;
}
