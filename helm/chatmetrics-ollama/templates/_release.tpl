{{/*
release.json: the models and settings for the containers fetch and proxy. Takes root and models.
It is an annotation of the pod instead of a ConfigMap: Helm deletes the old ConfigMap before the new pods are ready, and
an old pod that restarts in between could not start without it.
*/}}
{{- define "chatmetrics.release" -}}
{{- $values := .root.Values -}}
{{- $models := list -}}
{{- range .models -}}
  {{- $threshold := hasKey . "threshold" | ternary .threshold $values.acceptanceTest.threshold | toString -}}
  {{- $model := dict "name" .name "uri" .uri "sha256" (.sha256 | default "") "threshold" nil -}}
  {{- if $threshold -}}
    {{- $_ := set $model "threshold" (float64 $threshold) -}}
  {{- end -}}
  {{- $models = append $models $model -}}
{{- end -}}
{{- $databases := dict -}}
{{- range $values.ask.databases -}}
  {{- if .address -}}
    {{- $_ := set $databases .name .address -}}
  {{- else if .existingClaim -}}
    {{- $_ := set $databases .name (printf "/databases/%s/%s" .name .file) -}}
  {{- else -}}
    {{- $_ := set $databases .name .path -}}
  {{- end -}}
{{- end -}}
{{- dict
    "models" $models
    "manifestKey" $values.manifestKey
    "store" "/models"
    "keepVersions" (int $values.storage.keepVersions)
    "concurrency" (int $values.ollama.concurrency)
    "requestKib" (int $values.limits.requestKib)
    "requestSeconds" (int $values.limits.requestSeconds)
    "rate" $values.limits.rate
    "queue" (int $values.limits.queue)
    "drainSeconds" (int $values.rollout.drainSeconds)
    "tokens" ($values.auth.enabled | ternary "/etc/chatmetrics-tokens" nil)
    "clientDatabases" $values.auth.databases
    "requestLog" $values.requestLog.level
    "origins" $values.cors.origins
    "databases" $databases
    "bindNames" $values.ask.bindNames
    "questionCharacters" (int $values.ask.questionCharacters)
    "query" (dict
        "seconds" (int $values.query.seconds)
        "memoryMib" (int $values.query.memoryMib)
        "parallel" (int $values.query.parallel)
        "maxRows" (int $values.query.maxRows))
  | toJson -}}
{{- end -}}
