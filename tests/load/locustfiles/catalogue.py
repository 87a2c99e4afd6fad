"""FastHttpUser with paced tasks, catch_response, names, a client of its own and a listener that counts requests."""

import time

from locust import FastHttpUser, constant_throughput, events, task

seen = []


@events.init_command_line_parser.add_listener
def options(parser):
    parser.add_argument("--language", default="en")


@events.request.add_listener
def count(request_type, name, context, **kwargs):
    seen.append((request_type, name, context.get("language")))


@events.quitting.add_listener
def judge(environment, **kwargs):
    if ("GET", "/search", "de") in seen:
        environment.process_exit_code = 7


class Searcher(FastHttpUser):
    wait_time = constant_throughput(20)

    @task(2)
    def search(self):
        language = self.environment.parsed_options.language
        context = {"language": language}
        with self.client.get(f"/search?q={language}", name="/search", context=context, catch_response=True) as response:
            if "token" in response.text:
                response.failure("not the results page")

    @task
    def missing(self):
        with self.client.get("/fail", name="/expected-failure", catch_response=True) as response:
            if response.status_code == 500:
                response.success()

    @task
    def other_protocol(self):
        began = time.time()
        self.environment.events.request.fire(
            request_type="MQTT",
            name="publish",
            response_time=3.5,
            response_length=12,
            exception=None,
            context={},
            start_time=began,
        )
