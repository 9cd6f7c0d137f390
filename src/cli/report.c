#include "cli/report.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/files.h"
#include "base/json.h"
#include "base/log.h"
#include "cli/command.h"

static struct options {
    struct text_list run;
    const char *output, *summary;
} options;

#define AT(field) offsetof(struct options, field)
static const struct setting rows[] = {
    {"run", SETTING_LIST, AT(run), NULL, 0, 0, NULL, "run folder (metrics.jsonl, config.json); may repeat"},
    {"output", SETTING_TEXT, AT(output), NULL, 0, 0, NULL, "the page; without it, report.html in the first run"},
    {"summary", SETTING_TEXT, AT(summary), NULL, 0, 0, NULL, "the demo's summary.json: a table of results and text"},
};
static const struct settings settings = {
    .command = "report",
    .summary = "writes one HTML page about training runs",
    .usage = "RUN... [--output FILE.html]",
    .row = rows,
    .n = sizeof rows / sizeof *rows,
    .options = &options,
};

static enum status report(bool json)
{
    char path[PATH_LENGTH];
    if (!options.run.n) return fail(ERR_CONFIG, "report: no run is given (name one or more run folders)");
    if (options.output) {
        if (snprintf(path, sizeof path, "%s", options.output) >= (int)sizeof path)
            return fail(ERR_CONFIG, "--output: the path is longer than %d bytes", PATH_LENGTH - 1);
    } else {
        TRY(path_join(path, options.run.item[0], "report.html"));
    }
    TRY(report_write(options.run.item, options.run.n, options.summary, path));
    if (!json) {
        printf("%s\n", path);
        return OK;
    }
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_put_text(&o, "output", path);
    json_put_long(&o, "runs", options.run.n);
    json_end(&o, '}');
    return command_print_json(&o);
}

static enum status run(int argc, char **argv)
{
    struct common_options common;
    bool done;
    TRY(command_start(&settings, &common, NULL, &done, argc, argv));
    return done ? OK : report(common.json);
}

const struct command command_report = {.name = "report", .run = run, .settings = &settings};
