#include "base/log.h"
#include "cli/command.h"
#include "kernels/kernels.h"

enum status command_start(const struct settings *s, struct common_options *common, bool *set, bool *done, int argc,
                          char **argv)
{
    *done = false;
    TRY(settings_parse(s, common, set, argc, argv));
    if (common->help) {
        settings_help(stdout, s);
        *done = true;
        return OK;
    }
    log_quiet(common->quiet);
    return kernels_init(common->threads);
}

enum status command_print_json(struct json_out *o)
{
    enum status status = json_out_status(o);
    if (status == OK) printf("%s\n", o->text);
    json_out_free(o);
    return status;
}

enum status command_threads_beside_writing(const struct common_options *common)
{
    return common->threads == 0 && kernels_threads() > 1 ? kernels_init(kernels_threads() - 1) : OK;
}
